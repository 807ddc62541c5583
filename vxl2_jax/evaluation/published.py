"""Converts annotation rows of the benchmarks' own files to the format of the original's lmms-eval tasks.

Both hold the same questions. A row that is already in the task's format stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vxl2_jax.errors import RequestError, shown
from vxl2_jax.evaluation.rows import is_unanswered, letter, strings, value

MAX_OPTIONS = 5
_OPEN_ENDED = ("subPlot", "summary")
"""MLVU's question types without options; they are not part of its multiple-choice score."""
_OPTION = re.compile(r"\n(?=\([A-Z]\))")


def to_task_rows(name: str, doc: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The task rows for one published row of the benchmark `name`. Raises RequestError with the invalid key."""
    return _CONVERTERS[name](doc) if name in _CONVERTERS else [doc]


def _mlvu(doc: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """From json/1_plotQA.json …: video, question, candidates, answer (the text of one), question_type."""
    kind = doc.get("question_type")
    if "video_name" in doc or not isinstance(kind, str):
        return [doc]
    if kind in _OPEN_ENDED:
        return []
    options = strings(doc, "candidates")
    answer = None if is_unanswered(doc) else value(doc, "answer")
    if answer is not None and answer not in options:
        raise RequestError(f"'answer' must be one of 'candidates', not {shown(answer)}")
    lines = [value(doc, "question"), *(f"({letter(i)}) {option}" for i, option in enumerate(options))]
    return [
        {
            **doc,
            "video_name": value(doc, "video"),
            "question": "\n".join(lines),
            "answer": None if answer is None else letter(options.index(answer)),
            "task_type": kind,
        }
    ]


def _longvideobench(doc: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """From lvb_val.json: `candidates` instead of option0 … option4."""
    if "option0" in doc or "candidates" not in doc:
        return [doc]
    options = strings(doc, "candidates")
    if len(options) > MAX_OPTIONS:
        raise RequestError(f"'candidates' has {len(options)} entries; give up to {MAX_OPTIONS}")
    padded = (*options, *("N/A",) * (MAX_OPTIONS - len(options)))
    return [{**doc, **{f"option{i}": option for i, option in enumerate(padded)}}]


def _lvbench(doc: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """From video_info.meta.jsonl: one line per video with key, type and qa, a list of objects with question (and its
    options as lines `(A) …`), answer (a letter), question_type, time_reference."""
    if "qa" not in doc:
        return [doc]
    rows: list[Mapping[str, Any]] = []
    for number, entry in enumerate(value(doc, "qa", list), 1):
        if not isinstance(entry, Mapping):
            raise RequestError(f"'qa' must be a list of objects, not {shown(entry)}")
        question, *options = _OPTION.split(value(entry, "question"))
        correct: list[Any] = [None]
        if not is_unanswered(entry):
            correct = [option for option in options if option.startswith(f"({value(entry, 'answer')})")]
        if not correct:
            raise RequestError(f"'qa', entry {number}: 'answer' must be the letter of an option in 'question'")
        rows.append(
            {
                **entry,
                "video": value(doc, "key"),
                "type": value(doc, "type"),
                "question": question,
                "candidates": options,
                "answer": correct[0],
            }
        )
    return rows


_CONVERTERS = {"mlvu": _mlvu, "longvideobench": _longvideobench, "lvbench": _lvbench}
