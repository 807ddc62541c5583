"""From rows to marks: accuracies with Wilson intervals, and changes against the study's first setting, paired by
question, with intervals that take the questions of a clip together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.studies.study import Study
from vxl2_jax.evaluation.intervals import clustered_difference, mcnemar, paired_difference, wilson

Row = Mapping[str, Any]


def report(study: Study, rows: Sequence[Row], **made_with: Any) -> dict[str, Any]:
    """Marks of every kind of clips ("all" too, where there are several) in every setting.

    marks[content][setting]: accuracy, interval, questions, and "by" label the same; "change" against the first setting
    in percentage points (None for the first itself), and "change_by" label; chosen: the most chunks chosen in a clip;
    cache_percent and pairs_percent: key/value bytes loaded and attention pairs of pre-filling, of the dense ones;
    held: of the questions that rest on something shown, the percent of which every event had a dense chunk, and
    "held_by" label.
    """
    kinds = {content: [row for row in rows if row["content"] == content] for content in study.contents}
    kinds = {content: found for content, found in kinds.items() if found}
    if len(kinds) > 1:
        kinds["all"] = list(rows)
    marks = {content: {name: _marks(study, found, name) for name in study.settings} for content, found in kinds.items()}
    return {
        "study": study.name,
        "title": study.title,
        "compared_with": next(iter(study.settings)),
        "clips": {content: len(found) for content, found in kinds.items()},
        "marks": marks,
        "made_with": made_with,
    }


def _marks(study: Study, rows: Sequence[Row], name: str) -> dict[str, Any]:
    base = next(iter(study.settings))
    labels = list(dict.fromkeys(label for row in rows for label, *_ in row["asked"]))

    def total(field):
        return sum(row["settings"][name][field] for row in rows)

    def compared(label):
        return None if name == base else change(rows, base, name, label)

    return {
        **rate(_right(rows, name)),
        "by": {label: rate(_right(rows, name, label)) for label in labels},
        "change": compared(None),
        "change_by": {label: compared(label) for label in labels},
        "chosen": max(row["settings"][name]["chosen"] for row in rows),
        "cache_percent": round(100 * total("loaded") / total("dense"), 1),
        "pairs_percent": round(100 * total("pairs") / total("causal"), 1),
        "held": _held(rows, name),
        "held_by": {label: _held(rows, name, label) for label in labels},
    }


def _marked(row: Row, field: str, name: str, label: str | None) -> list[int | None]:
    """A field of one clip's questions, of one label or all."""
    pairs = zip(row["asked"], row["settings"][name][field], strict=True)
    return [value for (own, *_), value in pairs if label in (None, own)]


def _right(rows: Iterable[Row], name: str, label: str | None = None) -> list[int]:
    return [right for row in rows for right in _marked(row, "right", name, label)]


def _held(rows: Iterable[Row], name: str, label: str | None = None) -> float | None:
    found = [held for row in rows for held in _marked(row, "held", name, label) if held is not None]
    return round(100 * sum(found) / len(found), 1) if found else None


def rate(right: Sequence[int]) -> dict[str, Any]:
    """Accuracy in percent, its Wilson interval (95 %), and of how many questions."""
    low, high = wilson(sum(right), len(right))
    accuracy = round(100 * sum(right) / len(right), 1) if right else None
    return {"accuracy": accuracy, "interval": [round(low, 1), round(high, 1)], "questions": len(right)}


def change(rows: Sequence[Row], base: str, name: str, label: str | None = None) -> dict[str, Any]:
    """Accuracy of a setting less that of `base` over the same questions, in percentage points.

    interval: 95 %, the questions of a clip taken together where there is a spread between clips, else as if they were
    independent; p: of McNemar's test, which takes them for independent.
    """
    steps: dict[tuple, list[int]] = {}
    for row in rows:
        pairs = zip(_marked(row, "right", base, label), _marked(row, "right", name, label), strict=True)
        if each := [after - before for before, after in pairs]:
            steps[row["content"], row["clip"]] = each
    every = [step for each in steps.values() for step in each]
    lost, won = every.count(-1), every.count(1)
    low, high = clustered_difference(steps) or paired_difference(lost, won, len(every))
    return {
        "points": round(100 * (won - lost) / len(every), 1),
        "interval": [round(low, 1), round(high, 1)],
        "lost": lost,
        "won": won,
        "questions": len(every),
        "p": round(mcnemar(lost, won), 5),
    }


def as_text(found: Mapping[str, Any], labels: bool = False) -> str:
    """The report for a terminal; with `labels` also by group of questions."""
    lines = [found["title"]]
    for content, marks in found["marks"].items():
        lines.append(f"{content}: {found['clips'][content]} clips, {next(iter(marks.values()))['questions']} questions")
        width = max(map(len, marks))
        for name, mark in marks.items():
            held = "" if mark["held"] is None else f"  every event dense {mark['held']:.0f} %"
            lines.append(
                f"  {name:{width}s}  {_percent(mark)}{_points(mark['change'])}"
                f"  pairs {mark['pairs_percent']:.0f} %  bytes {mark['cache_percent']:.0f} %{held}"
            )
            if labels:
                lines += [
                    f"      {label:28s} {_percent(part)}{_points(mark['change_by'][label])}"
                    for label, part in mark["by"].items()
                ]
    return "\n".join(lines)


def _percent(mark: Mapping[str, Any]) -> str:
    return "{:5.1f} % ({:.0f} – {:.0f})".format(mark["accuracy"], *mark["interval"])


def _points(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else "  {:+.1f} ({:+.1f} … {:+.1f})".format(found["points"], *found["interval"])


Rows = dict[str, dict[str, tuple[float, Sequence[float]]]]
"""Rows of a picture: row → setting → (value, interval)."""


def by_content(marks: Mapping[str, Mapping[str, Any]]) -> tuple[Rows, Rows]:
    """(accuracies, changes): a row for every kind of clips."""
    rows = {content: {name: point(mark) for name, mark in found.items()} for content, found in marks.items()}
    changed = {
        content: {name: point(mark["change"]) for name, mark in found.items() if mark["change"]}
        for content, found in marks.items()
    }
    return rows, changed


def by_label(marks: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Rows, Rows]:
    """(accuracies, changes) of one kind of clips: a row for every label, by the name that it gets."""
    rows = {
        name: {setting: point(mark["by"][label]) for setting, mark in marks.items()} for label, name in names.items()
    }
    changed = {
        name: {setting: point(mark["change_by"][label]) for setting, mark in marks.items() if mark["change"]}
        for label, name in names.items()
    }
    return rows, changed


def point(part: Mapping[str, Any]) -> tuple[float, Sequence[float]]:
    """Value and interval of an accuracy or of a change."""
    return part.get("accuracy", part.get("points")), part["interval"]
