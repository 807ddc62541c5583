"""Which relevance finds the evidence of a question, and what is that worth in accuracy?

Clips with real footage in the background that training did not use are watched once, with chunk-based pre-filling, and
asked questions whose evidence is known: the events that the answer rests on. Each scorer ranks the chunks. The first and
the last chunk are always dense; of the others the best k are loaded dense, and the rest is pooled: at the same k all
scorers load the same bytes. Frames are given as arrays, without a video file.

    recall@k      of the events that lie wholly in chunks chosen by score, those with a chunk among the best k
    complete@k    of the questions whose evidence lies wholly in such chunks, those with all their events found
    accuracy@k    correct answers, of all questions and of those ("inside"); "dense" loads everything

Scorers: those of vxl2_jax.relevance ("random" is drawn anew for each question), and "evidence", which knows where the
events are: perfect relevance. Intervals assume independent events and questions. `against` compares the first scorer with
the others over the same questions: paired difference, and McNemar's exact test.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import vxl2_jax as vxl2
from experiments.studies import judging, plots, runner, statistics
from experiments.studies.judging import Asked
from experiments.studies.study import Result, Study, add_clip_flags, integer, listed
from experiments.synthetic import clips, pictures
from experiments.synthetic.questions import GROUP_S, questions
from vxl2_jax.relevance import SCORERS

DENSE, EVIDENCE, RANDOM = "dense", "evidence", "random"


class Drawn(NamedTuple):
    """A clip, its questions, and the seed of the scorer "random"."""

    clip: clips.Clip
    asked: list[Asked]
    seed: int


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_clip_flags(parser, seed=17, clips=16)
    add = parser.add_argument
    add("--per_clip", type=integer(1), default=14, help="questions about each clip")
    add("--shortest", type=integer(32), default=128, help="seconds of the shortest clip")
    add("--longest", type=integer(32, 1024), default=256, help="seconds of the longest clip")
    add("--top", type=listed(integer(1)), default=[1, 2, 4, 8, 16], help="k of recall and complete")
    add("--answered", type=listed(integer(1)), default=[4, 8], help="k of accuracy")
    add("--scorers", type=listed(str), default=[*SCORERS, EVIDENCE], help="scorers; the first is compared")
    add("--chunk_size", type=integer(1), default=1, help="groups of four frames per chunk")
    add("--compression", type=integer(1), default=8, help="visual tokens pooled into one in sparse chunks")


def run(args: argparse.Namespace) -> Result:
    """Answer, judge and report."""
    if unknown := set(args.scorers) - {*SCORERS, EVIDENCE}:
        raise vxl2.RequestError(f"--scorers: unknown {min(unknown)}; choose {', '.join([*SCORERS, EVIDENCE])}")
    if args.shortest > args.longest:
        raise vxl2.RequestError(f"--shortest {args.shortest} is more than --longest {args.longest}")
    model = vxl2.load(args.model)
    names = ("seed", "footage", "per_clip", "shortest", "longest", "chunk_size", "compression", "scorers", "answered")
    about = {"study": "relevance", "model": model.fingerprint, **{name: getattr(args, name) for name in names}}
    found = runner.run(args.records, about, draw_clips(args), partial(answered, model, args))
    asked = sum(len(record["asked"]) for record in found.values())
    settings = {"model": model.name, "model_hash": model.fingerprint, "clips": args.clips, "questions": asked}
    settings |= {"seconds": [args.shortest, args.longest]}
    settings |= {name: getattr(args, name) for name in ("chunk_size", "compression", "footage", "seed")}
    title = (
        f"{asked} questions about {args.clips} clips of {args.shortest} to {args.longest} s, chunks of "
        f"{GROUP_S * args.chunk_size} s, pooled {args.compression} to one; 95 % intervals"
    )
    report = report_of(found, args.scorers, args.top, args.answered)
    took = round(sum(record["took_s"] for record in found.values()), 1)
    draw_report = partial(draw, report=report, title=title)
    return Result({"settings": settings, **report, "took_s": took}, as_markdown(report), draw_report)


def draw_clips(args: argparse.Namespace) -> dict[str, Drawn]:
    """All clips, drawn one after another from one random stream."""
    rng, names, found = np.random.default_rng([args.seed, 20261122]), pictures.load()[0], {}
    for number in range(args.clips):
        length = int(rng.integers(args.shortest, args.longest + 1))
        clip = clips.draw_clip(rng, seconds=length, names=names, footage=args.footage)
        asked = judging.by_type(questions(rng, clip, args.per_clip))
        found[str(number)] = Drawn(clip, asked, int(rng.integers(2**31)))
    return found


def answered(model: vxl2.Model, args: argparse.Namespace, drawn: Drawn) -> runner.Record:
    """The record of a clip: with everything dense, and by every scorer at every k that is answered."""
    seconds, size = np.arange(int(drawn.clip.seconds)), args.chunk_size
    frames = clips.render_frames(drawn.clip, seconds, model.config.vision.image_size)
    memory = model.watch((frames, seconds.astype(float)), compression=args.compression)
    chunks, found = memory.layout.chunks(size), {}
    for scorer, top_k in [(DENSE, None), *((scorer, top_k) for scorer in args.scorers for top_k in args.answered)]:
        relevance: Any = scorer
        if scorer == RANDOM:
            rng = np.random.default_rng(drawn.seed)
            relevance = [rng.random(chunks) for _ in drawn.asked]
        elif scorer == EVIDENCE:
            events = [judging.evidence_of(question, size, chunks) for _, question in drawn.asked]
            relevance = [judging.known(each, np.zeros(chunks)) for each in events]
        judged = judging.ask(model, memory, drawn.asked, top_k=top_k, relevance=relevance, chunk_size=size)
        found[name_of(scorer, top_k)] = judged
    return judging.record_of(drawn.asked, found)


def name_of(scorer: str, top_k: int | None) -> str:
    return scorer if top_k is None else f"{scorer}@{top_k}"


def report_of(
    records: statistics.Records, scorers: Sequence[str], tops: Sequence[int], answered: Sequence[int]
) -> dict[str, Any]:
    """Recall, completeness and accuracy by scorer and k, and the first scorer against the others."""

    def flat(scorer: str, top_k: int | None, field: str = "right", inside: bool = False) -> list:
        return statistics.flat(statistics.values(records, name_of(scorer, top_k), field, inside=inside))

    def within(found: Sequence[int]) -> dict[int, dict[str, Any]]:
        return {top_k: share([rank <= top_k for rank in found]) for top_k in sorted(tops)}

    def marks(scorer: str, top_k: int | None) -> dict[str, Any]:
        loaded = round(statistics.percent_of(records, name_of(scorer, top_k), "loaded", "dense"), 1)
        inside = share(flat(scorer, top_k, inside=True))
        return share(flat(scorer, top_k)) | {"inside": inside, "bytes": loaded}

    def against(other: str, top_k: int) -> dict[str, Any]:
        # All questions as one cluster: an interval that assumes independence.
        found = statistics.change({"all": flat(other, top_k)}, {"all": flat(scorers[0], top_k)})
        return {name: found[name] for name in ("points", "interval", "questions")} | {"p": round(found["p"], 4)}

    any_k, ks = answered[0], sorted(answered)  # ranks are the same at every k
    return {
        "recall": {scorer: within(sum(flat(scorer, any_k, "ranks"), [])) for scorer in scorers},
        "complete": {scorer: within([*map(max, flat(scorer, any_k, "ranks", inside=True))]) for scorer in scorers},
        "accuracy": {DENSE: marks(DENSE, None)} | {k: {scorer: marks(scorer, k) for scorer in scorers} for k in ks},
        "against": {k: {other: against(other, k) for other in scorers[1:]} for k in ks},
    }


def share(found: Sequence[bool]) -> dict[str, Any]:
    """A share in percent, its interval, and of how many."""
    rate = statistics.rate(found)
    return {"percent": rate["accuracy"], "interval": rate["interval"], "of": rate["questions"]}


def as_markdown(report: Mapping[str, Any]) -> str:
    """Tables of recall, completeness and accuracy."""
    parts = []
    for name, unit in (("recall", "events"), ("complete", "questions")):
        rows = {
            scorer: {f"k = {k}": each for k, each in found.items()} | {unit: next(iter(found.values()))["of"]}
            for scorer, found in report[name].items()
        }
        parts.append(statistics.table(f"{name}@k", rows))
    dense, first = report["accuracy"][DENSE], next(iter(report["recall"]))
    for k, less in report["against"].items():
        rows = {
            scorer: {
                f"of {dense['of']}": each,
                f"inside, of {dense['inside']['of']}": each["inside"],
                "percent of key/value bytes": each["bytes"],
                f"{first} minus this, points": less.get(scorer),
            }
            for scorer, each in {DENSE: dense, **report["accuracy"][k]}.items()
        }
        parts.append(statistics.table(f"accuracy@{k}", rows))
    return "\n\n".join(parts)


def draw(path: Path, report: Mapping[str, Any], title: str) -> None:
    """Plot recall, completeness and accuracy over k."""
    dense, ks = plots.point(report["accuracy"][DENSE]), list(report["against"])
    right = {scorer: {k: report["accuracy"][k][scorer] for k in ks} for scorer in report["recall"]}
    names = ("events found among the best k, percent", "questions with all events found", "correct answers, percent")
    figure, axes = plots.subplots(3, (13, 4.4))
    for axis, name, each in zip(axes, names, (report["recall"], report["complete"], right), strict=True):
        # Beside each other: intervals at the same k would hide each other.
        lines = {
            scorer: [(float(k) * 1.03**place, plots.point(one), "") for k, one in found.items()]
            for place, (scorer, found) in enumerate(each.items())
        }
        plots.curves(axis, lines, dense if each is right else None, "everything dense")
        ticks = list(next(iter(each.values())))
        axis.set(xscale="log", ylim=(0, 102), xlabel="k, chunks chosen", title=name)
        axis.set_xticks([float(k) for k in ticks], ticks)
        axis.minorticks_off()
        axis.legend(fontsize=8, frameon=False, loc="lower right" if each is right else "upper left")
    plots.save(figure, path, title)


STUDY = Study(__doc__, run, add_flags)
