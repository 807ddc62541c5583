"""Pre-filling against PyTorch: the same weights, visual tokens and rule; who is faster, and who needs less memory.

Ours feeds strides with the cache as carry; PyTorch feeds everything at once under the boolean mask [L, L] of
`vxl2_jax.layout.natural_mask`. Each has a process of its own, and they run in turns, run by run, on the same cores: so
what else the machine does, which comes and goes in seconds, falls on both.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from experiments.bench import process
from experiments.parity.golden import Archive, layout_of, read_json
from experiments.parity.report import FEATURES, LOGITS, Report
from vxl2_jax import planning
from vxl2_jax.checkpoints import fetch
from vxl2_jax.layout import Layout, PrefillRule, natural_mask

SCRIPTS = {"ours": "watch_process", "torch": "torch_prefill"}
REST_S = 0.05
"""Between two runs, for threads of the other side that still look for work to go to sleep."""
MOST_TOKENS = 25_000
"""A mask of more would take PyTorch gigabytes, and minutes a run."""
FASTER, SMALLER = 2.0, 0.5
"""What ours should reach at 600 frames and more: times faster, and the share of the peak memory."""
TOLERANCE = 1e-4
"""Relative difference of the two caches."""


@dataclass(frozen=True)
class Setting:
    """python: an interpreter with torch; golden: the directory to reproduce first; threads: None for all cores;
    turns: pairs of processes; samples: timed runs in each; visual: tokens per group, None for nano's own;
    early: PyTorch too stops at the last layer's keys and values, where plain PyTorch runs every layer whole."""

    python: str | None
    golden: Path
    threads: int | None
    turns: int
    samples: int
    seed: int
    visual: int | None = None
    early: bool = False


def golden_runs(directory: Path) -> dict[str, np.ndarray]:
    """Per run with recorded logits: embeddings [L, E], packed mask, rows, logits of these, tolerance.

    Raises parity.golden.GoldenError for a directory that is not of the format.
    """
    placeholder = read_json(directory / "tiny_checkpoint" / "special_tokens.json")["visual_placeholder"]
    dense, chunked = (Archive(directory / f"prefill_{kind}.npz") for kind in ("dense", "chunked"))
    runs = {}
    for case in (found[1] for found in dense.matching(r"(.+)_geom")):
        ids, (_, visual, start, stop) = dense[f"{case}_ids"], dense[f"{case}_geom"].tolist()
        layout = layout_of(ids[start:stop], start, placeholder, visual)
        rows = dense[f"{case}_logit_rows"] if f"{case}_logit_rows" in dense else np.arange(len(ids))
        settings = [(PrefillRule(prev_blocks=None), dense, f"{case}_logits")]
        for found in chunked.matching(rf"{case}_b(\d+)_p(\d+)_logits"):
            settings.append((PrefillRule(int(found[1]), int(found[2])), chunked, found[0]))
        for rule, archive, key in settings:
            if key not in archive:
                continue
            want = archive[key]
            # The original's angles are float32 products, off by up to position · 2⁻²⁴ rad.
            widened = max(1.0, len(ids) * 2.0**-24 / FEATURES)
            runs |= {
                f"{key}_embeds": dense[f"{case}_inputs_embeds"],
                f"{key}_rows": rows,
                f"{key}_logits": want,
                f"{key}_mask": np.packbits(natural_mask(layout, rule, len(ids) - layout.length), axis=1),
                f"{key}_tolerance": np.float64(Report().allowed(want, LOGITS) * widened),
            }
    return runs


def layout_of_video(frames: int, visual: int | None) -> Layout:
    """As watching lays out nano's video of so many seconds; with other `visual` tokens per group if given."""
    config, tokenizer = planning.model_of("nano")
    layout = planning.layout_for(config, tokenizer, frames, 1.0)
    return Layout(layout.prefix, layout.timestamp_lengths, visual or layout.visual)


def case(layout: Layout, seed: int) -> dict[str, np.ndarray]:
    """What both sides are given: layout, random ids and visual tokens [G, V, E], places of the streams, packed mask."""
    lm, rng = planning.model_of("nano")[0].language, np.random.default_rng(seed)
    return {
        "prefix": np.int32(layout.prefix),
        "stamps": np.asarray(layout.timestamp_lengths),
        "ids": rng.integers(0, lm.vocabulary, layout.global_length).astype(np.int32),
        "visual": rng.normal(size=(layout.groups, layout.visual, lm.width)).astype(np.float32),
        "visual_positions": layout.visual_positions(),
        "global_positions": layout.global_positions(),
        "mask": np.packbits(natural_mask(layout, PrefillRule()), axis=1),
    }


@contextmanager
def prepared(setting: Setting) -> Iterator[tuple[Path, dict]]:
    """A folder for what is handed over, and the part of a request that never changes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "golden.npz", **golden_runs(setting.golden))
        yield (
            folder,
            {
                "task": "prefill",
                "threads": setting.threads,
                "case": str(folder / "case.npz"),
                "checkpoint": str(fetch.NANO),
                "golden_checkpoint": str(setting.golden / "tiny_checkpoint"),
                "golden_runs": str(folder / "golden.npz"),
                "last_keys_only": setting.early,
            },
        )


def arithmetic(layout: Layout, early: bool) -> dict[str, int]:
    """Operations that each side has to do: the pairs of the rule, or all that a mask has room for."""
    config, _ = planning.model_of("nano")
    lm, flops = config.language, planning.plan(config, layout, PrefillRule(), question_tokens=0, compression=1).flops
    every = 4 * lm.heads * lm.head_width * layout.length**2
    rest = layout.length * (4 * lm.width * lm.heads * lm.head_width + 6 * lm.width * lm.mlp)  # of a layer, but its keys
    torch = flops["language_linear"] + every * (lm.layers - 1) + (0 if early else rest + every)
    return {"ours": flops["language_linear"] + flops["attention"], "torch": torch}


def bench(frames: int, setting: Setting, left_s: Callable[[], float], tell: Callable[[str], None]) -> dict:
    """Both sides at one length. Where one does not run, "notes" says why, and the other's figures are given still."""
    layout = layout_of_video(frames, setting.visual)
    row = {
        "frames": frames,
        "tokens": layout.length,
        "flops": arithmetic(layout, setting.early),
        "torch_stops_early": setting.early,
        "notes": [],
    }
    if layout.length > MOST_TOKENS:
        size = f"{layout.length**2 / 1e9:.1f} GB, and as numbers four times that"
        return {**row, "notes": [f"not run: the mask of {layout.length} tokens takes {size}"]}
    sides = {side: Side(side, script) for side, script in SCRIPTS.items()}
    with prepared(setting) as (folder, request):
        np.savez(folder / "case.npz", **case(layout, setting.seed))
        for turn in range(setting.turns):
            with ExitStack() as stack:
                for side in sides.values():
                    if not side.gone:
                        tell(f"{frames} frames, pre-fill: {side.name}, turn {turn + 1} of {setting.turns}")
                        side.start(
                            stack, {**request, "out": str(folder / f"{side.name}.npy")}, left_s(), setting.python
                        )
                for _ in range(setting.samples):
                    for side in sides.values():
                        side.run_once()
                for side in sides.values():
                    side.end()
        caches = {name: np.load(out) for name in sides if (out := folder / f"{name}.npy").exists()}
    row["notes"] += [f"{side.name}: {side.gone}" for side in sides.values() if side.gone]
    lines = {name: side.lines for name, side in sides.items()}
    return {**row, **{name: summary(found) for name, found in lines.items()}, **compared(lines, caches)}


class Side:
    """One side of a comparison: a process at a time, which runs once whenever it is told. `gone`: why it no longer does."""

    def __init__(self, name: str, script: str):
        self.name, self.gone, self.lines = name, "", []
        self._script, self._child, self._heard = script, None, iter(())

    def start(self, stack: ExitStack, request: dict, limit_s: float, python: str | None) -> None:
        """Begin a process, and wait until it has compiled and run a first time."""
        self._child = None
        if limit_s <= 0:
            self.gone = "--limit_s is used up"
            return
        try:
            child = process.Script(self._script, limit_s=limit_s, python=python if self.name == "torch" else None)
        except OSError as error:
            self.gone = str(error)
            return
        self._child = stack.enter_context(child)
        self._heard = child.lines()
        child.ask(request)
        self._until("peak_bytes")

    def run_once(self) -> None:
        if self._child and not self.gone:
            time.sleep(REST_S)
            self._child.ask({})
            self._until("seconds")

    def end(self) -> None:
        """Let the process write its cache and end."""
        if self._child and not self.gone:
            self._child.no_more()
            self._until("")

    def _until(self, wanted: str) -> None:
        """Listen until a line has what is wanted, or to the end; what should not be the end says why it came."""
        for line in self._heard:
            self.lines.append(line)
            if wanted in line:
                return
        refused = next((line["refused"] for line in self.lines if "refused" in line), "")
        self.gone = refused or self._child.ended() or ("its process ended early" if wanted else "")


def summary(lines: list[dict]) -> dict | None:
    """Medians of one side's lines over all its processes; None without a timed run."""
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    memory = [line for line in lines if "peak_bytes" in line]
    if not seconds or not memory:
        return None
    return {
        "about": memory[0]["about"],
        "threads": memory[0]["threads"],
        "seconds": seconds,
        "median_s": median(seconds),
        "core_s": median(line["core_seconds"] for line in lines if "core_seconds" in line),
        "loaded_bytes": median(line["loaded_bytes"] for line in memory),
        "peak_bytes": median(line["peak_bytes"] for line in memory),
        "above_bytes": median(
            line["peak_bytes"] - line["loaded_bytes"] + line.get("working_bytes", 0) for line in memory
        ),
    }


def compared(sides: dict[str, list[dict]], caches: dict[str, np.ndarray]) -> dict:
    """Golden figures of the baseline; ratios, whether they reach the target, and how far the caches differ."""
    found = {"golden": next((line["golden"] for line in sides["torch"] if "golden" in line), None)}
    if len(caches) < len(SCRIPTS):
        return found
    ours, torch = (summary(sides[side]) for side in SCRIPTS)
    faster, share = torch["median_s"] / ours["median_s"], ours["above_bytes"] / torch["above_bytes"]
    pairs = [
        theirs / mine for mine, theirs in zip(ours["seconds"], torch["seconds"], strict=False)
    ]  # run one after the other
    difference = np.linalg.norm(caches["ours"] - caches["torch"]) / np.linalg.norm(caches["torch"])
    return {
        **found,
        "times_faster": faster,
        "pairs": np.quantile(pairs, [0.25, 0.75]).tolist(),
        "times_fewer_core_s": torch["core_s"] / ours["core_s"],
        "memory_share": share,
        "fast_enough": bool(faster >= FASTER),
        "small_enough": bool(share <= SMALLER),
        "difference": float(difference),
        "wrong": not difference <= TOLERANCE,
    }
