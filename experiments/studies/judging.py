"""Judged answers: whether each one is right, and how the chunks with its evidence were ranked and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.synthetic.questions import Question, chunks_of, inside, is_right
from vxl2_jax import Answer, Model, VideoMemory

MAX_NEW_TOKENS = 20
"""Of an answer; the longest correct one has 15."""


class Asked(NamedTuple):
    """A question, and the label of the questions that it is counted with."""

    label: str
    question: Question


def by_type(questions: Sequence[Question]) -> list[Asked]:
    """Questions labelled by their type."""
    return [Asked(question.type, question) for question in questions]


def ask(
    model: Model,
    memory: VideoMemory,
    asked: Sequence[Asked],
    *,
    top_k: int | None,
    relevance: str | Sequence[np.ndarray],
    chunk_size: int,
    batch: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict[str, Any]:
    """Ask all questions about a clip, and judge the answers (see `judge`).

    relevance: a scorer's name, or for each question the scores [chunks]; batch: questions at a time, 0: all.
    """
    chosen: Any = relevance
    if top_k is None:
        chosen = "recent"  # everything is dense and nothing chosen: this scorer costs nothing
    elif not isinstance(relevance, str):
        scores = iter(relevance)  # a function is called for one question after another

        def chosen(ids, memory):
            return next(scores)

    texts, batch = [one.question.question for one in asked], batch or len(asked)
    options = {"top_k": top_k, "chunk_size": chunk_size, "max_new_tokens": max_new_tokens, "relevance": chosen}
    answers = [
        answer
        for first in range(0, len(texts), batch)
        for answer in model.ask(memory, texts[first : first + batch], **options)
    ]
    return judge(asked, answers, chunk_size)


def record_of(asked: Sequence[Asked], settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The record of a clip: its questions, and by setting what `judge` gives."""
    return {"asked": [[label, one.question, one.answer] for label, one in asked], "settings": settings}


def judge(asked: Sequence[Asked], answers: Sequence[Answer], chunk_size: int) -> dict[str, Any]:
    """What became of a clip's questions in one setting, with `chunk_size` groups per chunk.

    Lists have an entry per question. right: 0 or 1. said: the response. ranks: for each event of the evidence that lies
    wholly in chunks that are chosen by score, the best rank of its chunks. inside: 1 if there is evidence and all of it
    lies in such chunks. held: 1 if each event has a chunk that was loaded dense; None without evidence. loaded, dense:
    key/value tokens read for all the questions, and those of the dense cache. chunks, chosen: how many chunks there are,
    and how many besides the first and the last were loaded dense for the first question.
    """
    rows = [_judge(one.question, answer, chunk_size) for one, answer in zip(asked, answers, strict=True)]
    return {name: [row[name] for row in rows] for name in rows[0]} | {
        "loaded": sum(answer.cache_tokens for answer in answers),
        "dense": sum(answer.cache_tokens_dense for answer in answers),
        "chunks": len(answers[0].chunks),
        "chosen": sum(chunk.dense for chunk in answers[0].chunks[1:-1]),
    }


def _judge(question: Question, answer: Answer, chunk_size: int) -> dict[str, Any]:
    chunks = answer.chunks
    placed = ranks(np.asarray([chunk.score for chunk in chunks]))
    events = evidence_of(question, chunk_size, len(chunks))
    chosen = inside(events, len(chunks))
    seen = [any(chunks[number - 1].dense for number in event) for event in events]
    return {
        "right": int(is_right(question, answer.text)),
        "said": answer.text,
        "ranks": [int(min(placed[number - 1] for number in event)) for event in chosen],
        "inside": int(bool(events) and len(chosen) == len(events)),
        "held": int(all(seen)) if seen else None,
    }


def evidence_of(question: Question, chunk_size: int, chunks: int) -> list[list[int]]:
    """For each event of the evidence the chunks, counted from 1, that show it; the longest shown first."""
    return [chunks_of(span, chunk_size, chunks) for span in question.evidence]


def ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of each chunk by score, from 1, among those that are chosen by score; ties go to the earlier chunk.

    scores: [chunks]. Returns int [chunks]; 0 for the first and the last chunk, which are always dense.
    """
    found = np.zeros(len(scores), int)
    order = np.argsort(-np.asarray(scores)[1:-1], kind="stable") + 1
    found[order] = np.arange(1, len(order) + 1)
    return found


def known(events: Sequence[Sequence[int]], others: np.ndarray) -> np.ndarray:
    """Scores [chunks] given the evidence: first the chunk that shows each event longest, then each event's next one.

    others: scores below 1 of the chunks without evidence.
    """
    scores = np.array(others, np.float64)
    deepest = max(map(len, events), default=0)
    turns = [event[depth] for depth in range(deepest) for event in events if depth < len(event)]
    for place, chunk in enumerate(dict.fromkeys(turns)):
        scores[chunk - 1] = 1 + 1 / (1 + place)
    return scores
