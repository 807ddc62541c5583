"""Annotation rows as the benchmarks' own files have them, brought into the form that the original's lmms-eval tasks read.

The two hold the same questions. A row that has that form already stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.rows import letter, texts, value

MOST_OPTIONS = 5
_OPEN = ("subPlot", "summary")
"""Question types of MLVU that are answered in sentences: no options, and no part of its multiple-choice score."""
_OPTION = re.compile(r"\n(?=\([A-Z]\))")


def forms(name: str, doc: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of benchmark `name` that one published row stands for. Raises RequestError naming the key that is amiss."""
    return _FORMS.get(name, lambda doc: [doc])(doc)


def _mlvu(doc: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of the files json/1_plotQA.json …: video, question, candidates, answer (the text of one), question_type."""
    kind = doc.get("question_type")
    if "video_name" in doc or not isinstance(kind, str):
        return [doc]
    if kind in _OPEN:
        return []
    options, answer = texts(doc, "candidates"), value(doc, "answer")
    if answer not in options:
        raise RequestError(f"'answer' must be one of 'candidates', not {answer!r:.60}")
    lines = [value(doc, "question"), *(f"({letter(i)}) {option}" for i, option in enumerate(options))]
    return [
        {
            **doc,
            "video_name": value(doc, "video"),
            "question": "\n".join(lines),
            "answer": letter(options.index(answer)),
            "task_type": kind,
        }
    ]


def _longvideobench(doc: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of lvb_val.json: `candidates` in the place of option0 … option4."""
    if "option0" in doc or "candidates" not in doc:
        return [doc]
    options = texts(doc, "candidates")
    if len(options) > MOST_OPTIONS:
        raise RequestError(f"'candidates' has {len(options)} entries; give up to {MOST_OPTIONS}")
    padded = (*options, *("N/A",) * (MOST_OPTIONS - len(options)))
    return [{**doc, **{f"option{i}": option for i, option in enumerate(padded)}}]


def _lvbench(doc: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of video_info.meta.jsonl: a line per video, key, type and qa, a list of question (its options inside, one `(A) …`
    a line), answer (a letter), question_type, time_reference."""
    if "qa" not in doc:
        return [doc]
    rows = []
    for number, asked in enumerate(value(doc, "qa", list), 1):
        if not isinstance(asked, Mapping):
            raise RequestError(f"'qa' must be a list of objects, not {asked!r:.60}")
        question, *options = _OPTION.split(value(asked, "question"))
        right = [option for option in options if option.startswith(f"({value(asked, 'answer')})")]
        if not right:
            raise RequestError(f"'qa', entry {number}: 'answer' must be the letter of an option in 'question'")
        rows.append(
            {
                **asked,
                "video": value(doc, "key"),
                "type": value(doc, "type"),
                "question": question,
                "candidates": options,
                "answer": right[0],
            }
        )
    return rows


_FORMS = {"mlvu": _mlvu, "longvideobench": _longvideobench, "lvbench": _lvbench}
