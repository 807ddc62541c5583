"""Compares two runs over the same questions: the difference with intervals, a test of it, and the same by group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import charts, report, run_folder
from vxl2_jax.evaluation.intervals import clustered_difference, mcnemar, paired_difference
from vxl2_jax.evaluation.run_folder import AnsweredQuestion
from vxl2_jax.evaluation.scores import total

_MAX_LISTED = 10
_UNPAIRED = {"only_in_a": "asked only in A", "only_in_b": "asked only in B", "not_counted": "without a score in A or B"}

Pair = tuple[AnsweredQuestion, AnsweredQuestion]


@dataclass(frozen=True)
class ComparedRun:
    """One of the two runs.

    Attributes:
      name: its path.
      settings: those of run.json; {} for a file of rows.
      questions: its answered questions by key.
      records: its records.
    """

    name: str
    settings: Mapping[str, Any]
    questions: Mapping[str, AnsweredQuestion]
    records: Sequence[Mapping[str, Any]]


def read(path: Path) -> ComparedRun:
    """Read a run's folder, or one of its files of rows. Raises RequestError."""
    if path.is_dir():
        settings, records = run_folder.read_run(path)["settings"], list(run_folder.read_records(path).values())
    else:
        settings, records = {}, run_folder.read_file(path)
    questions = {question.key: question for question in run_folder.answered_questions(records)}
    return ComparedRun(str(path), settings, questions, records)


def compare(a: ComparedRun, b: ComparedRun) -> dict[str, Any]:
    """Compare B with A over the questions that both answered.

    Differences are B's accuracy minus A's, in percentage points. Raises RequestError for runs of different benchmarks, or
    without a common question.
    """
    benchmarks = {run.settings["benchmark"] for run in (a, b) if run.settings}
    if len(benchmarks) > 1:
        raise RequestError(f"{a.name} and {b.name} are of different benchmarks, {' and '.join(sorted(benchmarks))}")
    pairs = [(question, b.questions[key]) for key, question in a.questions.items() if key in b.questions]
    counted = [pair for pair in pairs if all(one.verdict.counted for one in pair)]
    if not counted:
        raise RequestError(f"{a.name} and {b.name} have no question in common: compare runs of the same benchmark")
    groups: dict[str, dict[str, list[Pair]]] = {}
    for pair in counted:
        for field, values in pair[0].verdict.groups.items():
            for value in values:
                groups.setdefault(field, {}).setdefault(value, []).append(pair)
    return {
        "a": _summary(a, [pair[0] for pair in counted]),
        "b": _summary(b, [pair[1] for pair in counted]),
        "settings_that_differ": _differing_settings(a.settings, b.settings),
        **difference(counted),
        "by": {
            field: {value: difference(parts[value]) for value in run_folder.sort_values(field, parts)}
            for field, parts in groups.items()
        },
        "unpaired": {
            "only_in_a": [_identify(one) for key, one in a.questions.items() if key not in b.questions],
            "only_in_b": [_identify(one) for key, one in b.questions.items() if key not in a.questions],
            "not_counted": [_identify(pair[0]) for pair in pairs if not all(one.verdict.counted for one in pair)],
        },
    }


def difference(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The paired difference over some questions, with its intervals and its p-value."""
    by_video: dict[str, list[int]] = {}
    for a, b in pairs:
        by_video.setdefault(a.record["video"], []).append(b.verdict.correct - a.verdict.correct)
    changes = [change for video in by_video.values() for change in video]
    only_a, only_b, count = changes.count(-1), changes.count(1), len(changes)
    clustered = clustered_difference(by_video)
    return {
        "questions": count,
        "points": round(100 * (only_b - only_a) / count, 2),
        "interval": _rounded(paired_difference(only_a, only_b, count)),
        "interval_by_video": clustered and _rounded(clustered),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "p": round(mcnemar(only_a, only_b), 6),
    }


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(bound, 2) for bound in interval]


def _summary(run: ComparedRun, paired: Sequence[AnsweredQuestion]) -> dict[str, Any]:
    return {
        "name": run.name,
        "mode": run.settings.get("mode"),
        "accuracy": report.score_data(total(question.verdict for question in paired)),
        "saved": report.savings(list(run.questions.values()), run.records),
    }


def _differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    a, b = run_folder.flatten(a), run_folder.flatten(b)
    return {name: [a[name], b[name]] for name in a if name in b and a[name] != b[name]}


def _identify(question: AnsweredQuestion) -> dict[str, Any]:
    return {
        "video": question.record["video"],
        "id": question.answer["id"],
        "question": question.answer["question"],
    }


def write(folder: Path, data: Mapping[str, Any]) -> None:
    """Write compare.json, compare.md and compare.png into a folder. Raises RequestError."""
    report.write_texts(folder, {"compare.json": json.dumps(data, indent=1) + "\n", "compare.md": as_markdown(data)})
    charts.draw_comparison(folder / "compare.png", data)


def as_markdown(data: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    a, b = data["a"], data["b"]
    low, high = data["interval"]
    lines = [
        f"# {b['name']} against {a['name']}: {data['points']:+.2f} points ({low:+.1f} … {high:+.1f})",
        "",
        f"{data['questions']:,} questions in both: only A was correct on {data['only_a_right']}, only B on "
        f"{data['only_b_right']}; McNemar's exact test: p = {_p(data['p'])}.",
    ]
    if data["interval_by_video"]:
        low, high = data["interval_by_video"]
        lines.append(f"With questions clustered by video, the interval is {low:+.1f} … {high:+.1f}.")
    lines.append("")
    rows = [
        [
            letter,
            run["name"],
            run["mode"] or "",
            report.percent(run["accuracy"]),
            f"{run['saved']['attention_percent']} %",
            f"{run['saved']['cache_percent']} %",
        ]
        for letter, run in (("A", a), ("B", b))
    ]
    lines += report.table(["", "run", "mode", "correct", "attention pairs saved", "key/values saved"], rows)
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
        f"Of {tests} such tests, one in twenty has p < 0.05 by chance: p is not corrected for multiple tests.",
        "",
    ]
    for name, reason in _UNPAIRED.items():
        if questions := data["unpaired"][name]:
            rows = [[one["video"], one["id"] or "", one["question"]] for one in questions[:_MAX_LISTED]]
            cut = f" (the first {_MAX_LISTED})" if len(questions) > _MAX_LISTED else ""
            lines += [f"{len(questions)} questions were left out, {reason}{cut}:", ""]
            lines += report.table(["video", "id", "question"], rows)
    return "\n".join(lines)


def _p(value: float) -> str:
    return "below 0.0001" if value < 1e-4 else f"{value:.4f}"
