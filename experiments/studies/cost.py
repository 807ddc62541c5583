"""How do savings in FLOPs and bytes compare with savings in seconds, on this machine?

For videos of several lengths, dense and chunked pre-filling of the same visual tokens take turns, and so do questions
that load the whole cache and 35 % of it. Each saving is the median over the rounds of one ratio per round, with the
minimum and the maximum. FLOPs are those of `vxl2_jax.planning` (as `vxl2 plan` prints them); seconds are this machine's
and this model's: nano has ten tokens per group, the released model about 150.

Besides what FLOPs are counted for, the seconds of pre-filling include creating the empty streams and the sparse level,
which are the same in dense and chunked pre-filling and make the saved percentage smaller. Reading and decoding the video
are neither timed nor counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vxl2_jax as vxl2
from experiments.studies import memories, plots, runner, statistics
from experiments.studies.open_question import CHUNKED, DENSE, made_with
from experiments.studies.study import Result, Study, integer, listed
from vxl2_jax import Model, VideoMemory, planning

TITLE = "FLOPs and bytes saved against seconds saved (without reading and decoding the video)"
FRAMES = [256, 512, 1024, 2048]
SHARE, COMPRESSION = 35, 8
QUESTIONS = [f"What appears, in order, from the dog to the {name}?" for name in ("car", "owl", "cat", "bus")] * 4


def add_flags(parser: argparse.ArgumentParser) -> None:
    # At most 2,048: nano's vocabulary has timestamps up to 1,023 seconds, at two frames per second.
    parser.add_argument(
        "--frames", type=listed(integer(64, 2048)), default=FRAMES, help="lengths of the videos in frames"
    )
    parser.add_argument("--rounds", type=integer(1), default=3, help="rounds whose median is taken")


def run(args: argparse.Namespace) -> Result:
    """Time every length, and report."""
    model = vxl2.load(args.model)
    about = {"study": "cost", "rounds": args.rounds, **made_with(model)}
    lengths = {str(count): count for count in args.frames}
    found = runner.run(args.records, about, lengths, lambda count: _length(model, count, args.rounds))
    report = {
        "study": "cost",
        "title": TITLE,
        "rule": asdict(CHUNKED.rule),
        "share_percent": SHARE,
        "compression": COMPRESSION,
        "rounds": args.rounds,
        "questions": len(QUESTIONS),
        "frames": {
            key: {name: record[name] for name in ("tokens", "flops", "seconds", "saved_percent")}
            for key, record in found.items()
        },
        "made_with": made_with(model),
    }
    return Result(report, as_markdown(report), lambda path: draw(path, report))


def _length(model: Model, count: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round and what is saved, for a video of `count` frames of noise."""
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
    """Percent saved, as (median, minimum, maximum) over the rounds; counted quantities have no spread."""
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
    """Plot what is saved over the length: of watching, and of asking."""
    figure, axes = plots.subplots(2, (11, 4.4), sharex=True)
    frames = [int(count) for count in report["frames"]]
    for axis, names in zip(axes, (WATCHING, ASKING), strict=True):
        for number, name in enumerate(names):
            saved = np.asarray([part["saved_percent"][name] for part in report["frames"].values()]).T
            colour, line = plots.COLOURS[number + 1], "--" if name in COUNTED else "-"
            axis.plot(frames, saved[0], line + plots.MARKERS[number], color=colour, markersize=4, label=name)
            axis.fill_between(frames, saved[1], saved[2], color=colour, alpha=0.15, linewidth=0)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(frames, [f"{count:,}" for count in frames])
        axis.set(xlabel="frames", ylabel="percent saved")
        axis.legend(fontsize=8, frameon=False)
    axes[0].set_title("chunked against dense pre-filling (dashed: counted; seconds with the sparse level)", fontsize=9)
    axes[1].set_title(f"16 questions, {report['share_percent']} % of the bytes against all", fontsize=9)
    plots.save(figure, path, report["title"])


def as_markdown(report: Mapping[str, Any]) -> str:
    """The savings in percent, with the range over the rounds."""
    rows: dict[str, dict[str, str]] = {}
    for count, part in report["frames"].items():
        for name, (median, low, high) in part["saved_percent"].items():
            spread = f" ({low} to {high})" if low != high else ""
            rows.setdefault(name, {})[f"{count} frames"] = f"{median:.1f}{spread}"
    return f"# {report['title']}\n\n{statistics.table('percent saved of', rows)}"


STUDY = Study(__doc__, run, add_flags)
