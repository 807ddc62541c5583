"""Two runs over the same questions: which is better, by how much, for which kinds of questions, and is it chance?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import charts, folder, report
from vxl2_jax.evaluation.folder import Answered
from vxl2_jax.evaluation.intervals import clustered_difference, mcnemar, paired_difference
from vxl2_jax.evaluation.scores import total

_SHOWN = 10
_WAYS = {"only_in_a": "asked only in A", "only_in_b": "asked only in B", "not_counted": "without a score in A or B"}


@dataclass(frozen=True)
class Side:
    """One of two runs: its name, settings ({} for bare rows), questions by key, and its rows by video."""

    name: str
    settings: Mapping[str, Any]
    answered: Mapping[str, Answered]
    records: Sequence[Mapping[str, Any]]


def read(place: Path) -> Side:
    """A run's folder, or one of its files of rows. Raises RequestError."""
    if place.is_dir():
        settings, found = folder.read_run(place)["settings"], list(folder.records(place).values())
    else:
        settings, found = {}, folder.read_rows(place)
    return Side(str(place), settings, {one.key: one for one in folder.answers(found)}, found)


def compare(a: Side, b: Side) -> dict[str, Any]:
    """B against A over the questions that both answered. Raises RequestError if there is none.

    Differences are B's accuracy less A's, in percentage points.
    """
    benchmarks = {side.settings["benchmark"] for side in (a, b) if side.settings}
    if len(benchmarks) > 1:
        raise RequestError(f"{a.name} and {b.name} are of different benchmarks, {' and '.join(sorted(benchmarks))}")
    both = [key for key in a.answered if key in b.answered]
    pairs = [(a.answered[key], b.answered[key]) for key in both]
    counted = [pair for pair in pairs if all(one.verdict.counted for one in pair)]
    if not counted:
        raise RequestError(f"{a.name} and {b.name} have no question in common: compare runs of the same benchmark")
    groups: dict[str, dict[str, list]] = {}
    for pair in counted:
        for field, values in pair[0].verdict.groups.items():
            for value in values:
                groups.setdefault(field, {}).setdefault(value, []).append(pair)
    return {
        "a": _told(a, [pair[0] for pair in counted]),
        "b": _told(b, [pair[1] for pair in counted]),
        "settings_that_differ": _differing(a.settings, b.settings),
        **difference(counted),
        "by": {
            field: {value: difference(parts[value]) for value in folder.in_order(field, parts)}
            for field, parts in groups.items()
        },
        "unpaired": {
            "only_in_a": [_named(one) for key, one in a.answered.items() if key not in b.answered],
            "only_in_b": [_named(one) for key, one in b.answered.items() if key not in a.answered],
            "not_counted": [_named(pair[0]) for pair in pairs if not all(one.verdict.counted for one in pair)],
        },
    }


def difference(pairs: Sequence[tuple[Answered, Answered]]) -> dict[str, Any]:
    """The paired difference over some questions, with its intervals, and the test of it."""
    by_video: dict[str, list[int]] = {}
    for one, other in pairs:
        by_video.setdefault(one.record["video"], []).append(other.verdict.correct - one.verdict.correct)
    steps = [step for each in by_video.values() for step in each]
    only_a, only_b, count = steps.count(-1), steps.count(1), len(steps)

    def rounded(bounds):
        return bounds and [round(bound, 2) for bound in bounds]

    return {
        "questions": count,
        "points": round(100 * (only_b - only_a) / count, 2),
        "interval": rounded(paired_difference(only_a, only_b, count)),
        "interval_by_video": rounded(clustered_difference(by_video)),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "p": round(mcnemar(only_a, only_b), 6),
    }


def _told(side: Side, paired: Sequence[Answered]) -> dict[str, Any]:
    return {
        "name": side.name,
        "mode": side.settings.get("mode"),
        "accuracy": report.scored(total(one.verdict for one in paired)),
        "saved": report.saved(list(side.answered.values()), side.records),
    }


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    a, b = (folder.flat(settings) for settings in (a, b))
    return {name: [a[name], b[name]] for name in a if name in b and a[name] != b[name]}


def _named(one: Answered) -> dict[str, Any]:
    return {"video": one.record["video"], "id": one.row["id"], "question": one.row["question"]}


def write(place: Path, data: Mapping[str, Any]) -> None:
    """Write compare.json, compare.md and compare.png into a folder."""
    report.put(place, {"compare.json": json.dumps(data, indent=1) + "\n", "compare.md": as_markdown(data)})
    charts.draw_comparison(place / "compare.png", data)


def as_markdown(data: Mapping[str, Any]) -> str:
    """The comparison for people."""
    a, b = data["a"], data["b"]
    low, high = data["interval"]
    lines = [
        f"# {b['name']} against {a['name']}: {data['points']:+.2f} points ({low:+.1f} … {high:+.1f})",
        "",
        f"{data['questions']:,} questions in both: only A was right at {data['only_a_right']}, only B at "
        f"{data['only_b_right']}; McNemar's exact test: p = {_p(data['p'])}.",
    ]
    if data["interval_by_video"]:
        low, high = data["interval_by_video"]
        lines.append(f"With the questions of a video taken together, the interval is {low:+.1f} … {high:+.1f}.")
    lines.append("")
    sides = [
        [
            mark,
            side["name"],
            side["mode"] or "",
            report.percent(side["accuracy"]),
            f"{side['saved']['attention_percent']} %",
            f"{side['saved']['cache_percent']} %",
        ]
        for mark, side in (("A", a), ("B", b))
    ]
    lines += report.table(["", "run", "mode", "right", "attention pairs saved", "key/values saved"], sides)
    if data["settings_that_differ"]:
        rows = [[name, *values] for name, values in data["settings_that_differ"].items()]
        lines += report.table(["setting", "A", "B"], rows)
    for field, parts in data["by"].items():
        rows = [
            [
                value,
                part["questions"],
                f"{part['points']:+.2f}",
                "{:+.1f} … {:+.1f}".format(*part["interval"]),
                part["only_a_right"],
                part["only_b_right"],
                _p(part["p"]),
            ]
            for value, part in parts.items()
        ]
        lines += report.table([field.replace("_", " "), "questions", "points", "95 %", "only A", "only B", "p"], rows)
    tests = sum(map(len, data["by"].values()))
    lines += [
        f"Of {tests} such tests, one in twenty is below 0.05 by chance alone: p is not corrected for their number.",
        "",
    ]
    for name, way in _WAYS.items():
        if out := data["unpaired"][name]:
            rows = [[one["video"], one["id"] or "", one["question"]] for one in out[:_SHOWN]]
            more = f" (the first {_SHOWN})" if len(out) > _SHOWN else ""
            lines += [
                f"{len(out)} questions were left out, {way}{more}:",
                "",
                *report.table(["video", "id", "question"], rows),
            ]
    return "\n".join(lines)


def _p(value: float) -> str:
    return "below 0.0001" if value < 1e-4 else f"{value:.4f}"
