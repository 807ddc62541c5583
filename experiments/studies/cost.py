"""FLOPs saved against seconds saved: what chunk-based pre-filling and bi-level loading bring on this machine.

For videos of several lengths, dense and chunked pre-filling of the same visual tokens take turns, and so do questions
that load the whole cache and 35 % of it; every saving is the median over the rounds of one ratio a round, with the
least and the greatest. FLOPs are counted by `vxl2_jax.planning` (what `vxl2 plan` prints), the seconds are this machine's and
this model's: nano has ten tokens to a group where the released model has about 150.

Seconds of pre-filling hold, beside what FLOPs are counted of, making the empty streams and the sparse level; both are
the same in dense and chunked pre-filling and so draw the percentage saved towards nothing. Reading and decoding the
video are neither timed nor counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.studies import drawing, memories
from experiments.studies.study import CHUNKED, DENSE
from vxl2_jax import Model, VideoMemory, planning, plot

NAME, TITLE = "cost", "FLOPs and bytes saved against seconds saved (without reading and decoding the video)"
FRAMES = (256, 512, 1024, 2048)
SHARE, COMPRESSION = 35, 8
QUESTIONS = [f"What appears, in order, from the dog to the {name}?" for name in ("car", "owl", "cat", "bus")] * 4


def measure(model: Model, frames: Sequence[int], rounds: int, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """The report. progress: called with (lengths done, of how many)."""
    found = {}
    for done, count in enumerate(frames):
        progress(done, len(frames))
        found[str(count)] = _length(model, count, rounds)
    progress(len(frames), len(frames))
    return {
        "study": NAME,
        "title": TITLE,
        "rule": asdict(CHUNKED.rule),
        "share_percent": SHARE,
        "compression": COMPRESSION,
        "rounds": rounds,
        "questions": len(QUESTIONS),
        "frames": found,
    }


def _length(model: Model, count: int, rounds: int) -> dict[str, Any]:
    """Seconds of every round and what is saved, for a video of `count` frames of noise."""
    seconds = np.arange(count) / 2  # two frames a second: timestamps stay in the vocabulary
    rules = {"dense": DENSE.rule, "chunked": CHUNKED.rule}
    size = model.config.vision.image_size
    frames = np.random.default_rng(0).integers(256, size=(count, size, size, 3), dtype=np.uint8)
    vision: list[float] = []
    asked: dict[str, list[dict[str, float]]] = {"whole": [], "bilevel": []}
    prefill: dict[str, list[float]] = {name: [] for name in rules}
    for number in range(rounds + 1):  # the first round compiles and is not counted
        began = time.perf_counter()
        tokens = jax.block_until_ready(memories.visual_tokens(model, frames))
        vision.append(time.perf_counter() - began)
        for name in sorted(rules, reverse=bool(number % 2)):
            began = time.perf_counter()
            memory = memories.remember(model, tokens, seconds, rules[name], COMPRESSION)
            prefill[name].append(time.perf_counter() - began)
            if name == "chunked":
                watched = memory
        for name in sorted(asked, reverse=bool(number % 2)):
            asked[name].append(_asked(model, watched, None if name == "whole" else SHARE))
    timed = {"vision": vision[1:], **{f"prefill, {name}": found[1:] for name, found in prefill.items()}}
    for name, found in asked.items():
        timed |= {f"{stage}, {name}": [one[stage] for one in found[1:]] for stage in ("relevance", "load", "decode")}
    plans = {
        name: planning.plan(
            model.config,
            watched.layout,
            rule,
            question_tokens=0,
            itemsize=model.dtype.itemsize,
            sizes=model.sizes,
            kernel=model.kernel,
        )
        for name, rule in rules.items()
    }
    return {
        "tokens": watched.layout.length,
        "flops": {name: plan.flops for name, plan in plans.items()},
        "seconds": {name: [round(value, 4) for value in values] for name, values in timed.items()},
        "saved_percent": _saved(plans, timed, asked["bilevel"][-1]["loaded"] / watched.layout.length),
    }


def _asked(model: Model, memory: VideoMemory, share: int | None) -> dict[str, float]:
    """Seconds per stage of sixteen questions, and the tokens that one loads."""
    top_k = None if share is None else memories.interior(memory, share, 1)
    scorer = "recent" if share is None else "attention"
    answers = model.ask(memory, QUESTIONS, top_k=top_k, relevance=scorer, chunk_size=1, max_new_tokens=16)
    return {"load": 0.0, **answers[0].timings, "loaded": answers[0].cache_tokens}


def _saved(
    plans: Mapping[str, planning.Plan], timed: Mapping[str, list[float]], loaded: float
) -> dict[str, list[float]]:
    """Percent saved, as (median, least, greatest) over the rounds; counted quantities have no spread."""
    flops = {name: plan.flops for name, plan in plans.items()}
    language = {name: parts["language_linear"] + parts["attention"] for name, parts in flops.items()}
    series = {name: np.asarray(values) for name, values in timed.items()}
    whole = {name: series["vision"] + series[f"prefill, {name}"] for name in plans}
    answering = {
        name: sum(series[f"{stage}, {name}"] for stage in ("relevance", "load", "decode"))
        for name in ("whole", "bilevel")
    }
    ratios = {
        "attention FLOPs": flops["chunked"]["attention"] / flops["dense"]["attention"],
        "pre-fill FLOPs": language["chunked"] / language["dense"],
        "pre-fill seconds": series["prefill, chunked"] / series["prefill, dense"],
        "vision and pre-fill FLOPs": sum(flops["chunked"].values()) / sum(flops["dense"].values()),
        "vision and pre-fill seconds": whole["chunked"] / whole["dense"],
        "key/value bytes": loaded,
        "seconds of question and answer": series["decode, bilevel"] / series["decode, whole"],
        "the same with choosing and loading": answering["bilevel"] / answering["whole"],
    }
    picks = (np.median, np.max, np.min)
    return {name: [round(100 * (1 - float(pick(ratio))), 1) for pick in picks] for name, ratio in ratios.items()}


WATCHING = (
    "attention FLOPs",
    "pre-fill FLOPs",
    "pre-fill seconds",
    "vision and pre-fill FLOPs",
    "vision and pre-fill seconds",
)
COUNTED = ("attention FLOPs", "pre-fill FLOPs", "vision and pre-fill FLOPs", "key/value bytes")
ASKING = ("key/value bytes", "seconds of question and answer", "the same with choosing and loading")


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """What is saved over the length: of watching, and of asking."""
    figure, axes = drawing.new_figure(1, 2, (11, 4.4), sharex=True)
    frames = [int(count) for count in report["frames"]]
    for axis, names in zip(axes, (WATCHING, ASKING), strict=True):
        for number, name in enumerate(names):
            saved = np.asarray([part["saved_percent"][name] for part in report["frames"].values()]).T
            colour, line = drawing.COLOURS[number + 1], "--" if name in COUNTED else "-"
            axis.plot(frames, saved[0], line + drawing.MARKERS[number], color=colour, markersize=4, label=name)
            axis.fill_between(frames, saved[1], saved[2], color=colour, alpha=0.15, linewidth=0)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(frames, [f"{count:,}" for count in frames])
        axis.set(xlabel="frames", ylabel="percent saved")
        axis.grid(color="#eeeeee")
        axis.legend(fontsize=8, frameon=False)
    axes[0].set_title("chunked against dense pre-filling (dashed: counted; seconds with the sparse level)", fontsize=9)
    axes[1].set_title(f"16 questions, {report['share_percent']} % of the bytes against all", fontsize=9)
    figure.suptitle(report["title"], fontsize=11)
    plot.save(figure, path)


def as_text(report: Mapping[str, Any]) -> str:
    """The savings for a terminal."""
    lines = [report["title"]]
    for count, part in report["frames"].items():
        lines.append(f"{count} frames, {part['tokens']} tokens")
        lines += [
            f"  {name:36s} {median:6.1f} %" + (f"  ({least} … {most})" if least != most else "")
            for name, (median, least, most) in part["saved_percent"].items()
        ]
    return "\n".join(lines)
