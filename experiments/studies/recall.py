"""What scorers found: of every question's evidence the ranks of its chunks, and whether the answer was right; rates, tables
and plots of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import vxl2_jax as vxl2
from experiments.synthetic.questions import Question, chunks_of, inside, is_right
from vxl2_jax import plot
from vxl2_jax.evaluation.intervals import mcnemar, paired_difference, wilson

DENSE, EVIDENCE, LOT = "dense", "evidence", "random"
COLOURS = {
    "attention": "#1f77b4",
    "mass": "#9467bd",
    "uniform": "#8c6d31",
    LOT: "#7f7f7f",
    "recent": "#e6a03c",
    EVIDENCE: "#2ca02c",
}


@dataclass(frozen=True)
class Judged:
    """One question by one scorer at one k (None: everything dense).

    events: of each event of the evidence that lies inside, the best rank of its chunks (from 1); complete: the worst of
    them if all evidence lies inside, else None; loaded, dense: key/value tokens read, and those of the dense memory.
    """

    scorer: str
    top_k: int | None
    number: int
    events: tuple[int, ...]
    complete: int | None
    right: bool
    loaded: int
    dense: int


def ranks(scores: np.ndarray) -> np.ndarray:
    """Place of every chunk by score, from 1, among those that have to be chosen, as they are chosen (ties: the earlier
    first); 0 for the first and the last. Shapes: scores [chunks] → int [chunks]."""
    found = np.zeros(len(scores), int)
    order = np.argsort(-np.asarray(scores)[1:-1], kind="stable") + 1
    found[order] = np.arange(1, len(order) + 1)
    return found


def known(events: Sequence[Sequence[int]], chunks: int) -> np.ndarray:
    """Scores [chunks] of one who knows the evidence: of every event in turn the chunk that shows it longest, then of
    every event the next one."""
    scores = np.zeros(chunks, np.float32)
    deepest = max(map(len, events), default=0)
    turns = [event[depth] for depth in range(deepest) for event in events if depth < len(event)]
    for place, chunk in enumerate(dict.fromkeys(turns)):
        scores[chunk - 1] = 1 / (1 + place)
    return scores


def judge(scorer: str, top_k: int | None, number: int, question: Question, answer: vxl2.Answer, size: int) -> Judged:
    """What became of a question's evidence, and of its answer; `size` groups a chunk."""
    count = len(answer.chunks)
    placed = ranks(np.asarray([chunk.score for chunk in answer.chunks]))
    events = [chunks_of(span, size, count) for span in question.evidence]
    found = tuple(int(min(placed[chunk - 1] for chunk in event)) for event in inside(events, count))
    complete = max(found) if found and len(found) == len(events) else None
    right = is_right(question, answer.text)
    return Judged(scorer, top_k, number, found, complete, right, answer.cache_tokens, answer.cache_tokens_dense)


def report_of(rows: Sequence[Judged], tops: Sequence[int], answered: Sequence[int]) -> dict:
    """Recall, completeness and accuracy by scorer and k, and the first scorer against the others."""
    scorers = list(dict.fromkeys(row.scorer for row in rows if row.scorer != DENSE))
    ways = {way: [row for row in rows if (row.scorer, row.top_k) == way] for way in {(r.scorer, r.top_k) for r in rows}}
    placed = {scorer: ways[scorer, answered[0]] for scorer in scorers}  # ranks are the same at every k
    ends = {scorer: [row.complete for row in placed[scorer] if row.complete is not None] for scorer in scorers}
    events = {scorer: [rank for row in placed[scorer] for rank in row.events] for scorer in scorers}

    def within(found):
        return {top_k: rate([rank <= top_k for rank in found]) for top_k in tops}

    return {
        "recall": {scorer: within(events[scorer]) for scorer in scorers},
        "complete": {scorer: within(ends[scorer]) for scorer in scorers},
        "accuracy": {
            "dense": marks(ways[DENSE, None]),
            **{top_k: {scorer: marks(ways[scorer, top_k]) for scorer in scorers} for top_k in answered},
        },
        "against": {
            top_k: {other: against(ways[scorers[0], top_k], ways[other, top_k]) for other in scorers[1:]}
            for top_k in answered
        },
    }


def rate(found: Sequence[bool]) -> dict:
    """A share in percent, its interval, and of how many."""
    count, right = len(found), sum(found)
    interval = [round(bound, 1) for bound in wilson(right, count)]
    return {"percent": round(100 * right / count, 1) if count else None, "interval": interval, "of": count}


def marks(rows: Sequence[Judged]) -> dict:
    """Accuracy of one way of asking, that of questions whose evidence lies inside, and the share of bytes loaded."""
    share = sum(row.loaded for row in rows) / sum(row.dense for row in rows)
    inner = rate([row.right for row in rows if row.complete is not None])
    return rate([row.right for row in rows]) | {"inside": inner, "bytes": round(100 * share, 1)}


def against(one: Sequence[Judged], other: Sequence[Judged]) -> dict:
    """By how many percentage points `one` is better than `other` over the same questions."""
    only_one, only_other = (
        sum(a.right > b.right for a, b in zip(*pair, strict=True)) for pair in ((one, other), (other, one))
    )
    interval = paired_difference(only_other, only_one, len(one))
    return {
        "points": round(100 * (only_one - only_other) / len(one), 1),
        "interval": [round(bound, 1) for bound in interval],
        "p": round(mcnemar(only_one, only_other), 4),
        "questions": len(one),
    }


def as_text(report: dict) -> str:
    """Tables for a terminal."""
    lines = []
    for name, of in (("recall", "events"), ("complete", "questions")):
        tops = list(next(iter(report[name].values())))
        lines += ["", f"{name}@k, percent   " + "".join(f"{f'k = {k}':>22s}" for k in tops)]
        for scorer, found in report[name].items():
            lines.append(
                f"  {scorer:18s}"
                + "".join(f"{told(found[k]):>22s}" for k in tops)
                + f"  of {found[tops[0]]['of']} {of}"
            )
    dense, *ks = report["accuracy"].items()
    lines += ["", f"accuracy with everything dense: {told(dense[1])}; inside: {told(dense[1]['inside'])}"]
    for top_k, found in ks:
        asked = next(iter(found.values()))
        lines += [
            "",
            f"accuracy@{top_k}, percent of {asked['of']}; inside, of {asked['inside']['of']}; bytes loaded; first scorer less this one",
        ]
        for scorer, each in found.items():
            less = report["against"][top_k].get(scorer)
            behind = (
                f"{less['points']:+6.1f} ({less['interval'][0]} – {less['interval'][1]}), p {less['p']}" if less else ""
            )
            lines.append(f"  {scorer:12s}{told(each):>22s}{told(each['inside']):>22s}{each['bytes']:>7.1f} %  {behind}")
    return "\n".join(lines[1:])


def told(found: dict) -> str:
    """A share with its interval."""
    if found["percent"] is None:
        return "none"
    low, high = found["interval"]
    return f"{found['percent']:.1f} ({low} – {high})"


def draw(path: Path, report: dict, title: str) -> None:
    """Recall and accuracy over k, with intervals. Written whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    dense, *ks = report["accuracy"].items()
    right = {scorer: {top_k: found[scorer] for top_k, found in ks} for scorer in report["recall"]}
    names = ("events found among the best k, percent", "questions with all events found", "answers right, percent")
    for axis, name, shown in zip(axes, names, (report["recall"], report["complete"], right), strict=True):
        for place, (scorer, found) in enumerate(shown.items()):
            # Beside each other, or intervals at the same k would hide each other.
            at = np.asarray([float(top_k) for top_k in found]) * 1.02 ** (place - len(shown) / 2)
            values = np.asarray([each["percent"] for each in found.values()], float)
            bounds = np.asarray([each["interval"] for each in found.values()]).T
            axis.plot(at, values, marker=".", label=scorer, color=COLOURS[scorer])
            axis.vlines(at, *bounds, color=COLOURS[scorer], linewidth=0.8)
        axis.set(xscale="log", ylim=(0, 102), xlabel="k, chunks chosen", title=name)
        axis.set_xticks([float(top_k) for top_k in next(iter(shown.values()))], list(next(iter(shown.values()))))
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[2].axhline(dense[1]["percent"], color="black", linewidth=0.8, label="everything dense")
    figure.legend(
        *axes[2].get_legend_handles_labels(),
        fontsize=8,
        frameon=False,
        loc="outside lower center",
        ncols=len(right) + 1,
    )
    figure.suptitle(title, parse_math=False, fontsize=10)
    plot.save(figure, path)
