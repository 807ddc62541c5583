"""Where a needle lies among the chunks of an answer, and what became of it."""

from __future__ import annotations

import numpy as np

import vxl2_jax as vxl2
from nano.questions import is_right


def chunk_of(event: dict, chunks: tuple[vxl2.Chunk, ...]) -> int:
    """Index of the chunk that shows the needle longest (of equals, the earliest)."""
    shown = [min(c.end_s, event["stop_s"]) - max(c.start_s, event["start_s"]) for c in chunks]
    return int(np.argmax(shown))


def rank_of(index: int, chunks: tuple[vxl2.Chunk, ...]) -> int:
    """Place of a chunk by score among those that have to be chosen, from 1; 0 for the first and the last chunk."""
    if index in (0, len(chunks) - 1):
        return 0
    order = sorted(range(1, len(chunks) - 1), key=lambda i: -chunks[i].score)
    return order.index(index) + 1


def judge(question: dict, event: dict, answer: vxl2.Answer) -> dict:
    """One row of the report."""
    index = chunk_of(event, answer.chunks)
    return {
        "type": question["type"], "question": question["question"], "needle": event["name"],
        "start_s": event["start_s"], "chunk": index + 1, "rank": rank_of(index, answer.chunks),
        "dense": answer.chunks[index].dense, "expected": question["answer"], "answer": answer.text,
        "right": is_right(question, answer.text),
    }
