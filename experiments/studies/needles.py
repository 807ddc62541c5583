"""Where a needle lies among the chunks of an answer, and what became of it.

A needle is found by its frames, as `questions.chunks_of` counts them: it may lie in several chunks, and each of them shows
it. A choice finds it if one of them is loaded dense.
"""

from __future__ import annotations

import math

import numpy as np

import vxl2_jax as vxl2
from experiments.studies.recall import ranks
from experiments.synthetic.haystacks import Asked
from experiments.synthetic.questions import chunks_of, is_right


def by_lot(shown: int, top_k: int, chunks: int) -> float:
    """How often `top_k` of `chunks` that are drawn by lot hold at least one of the `shown` ones."""
    top_k = min(top_k, chunks)
    return 1 - math.comb(chunks - shown, top_k) / math.comb(chunks, top_k)


def judge(asked: Asked, answer: vxl2.Answer, chunk_size: int, top_k: int) -> dict:
    """What a row says of one answer; `chunk_size` groups a chunk.

    chunk: the one that shows the needle longest, from 1; rank: the best of those that show it (see `recall.ranks`), 0
    where one of them is the first or the last; dense: was one of them loaded dense?; lot: how often a choice of `top_k`
    by lot would have.
    """
    needle, chunks = asked.needle, answer.chunks
    own = chunks_of((needle.start_s, needle.stop_s), chunk_size, len(chunks))
    placed = ranks(np.asarray([chunk.score for chunk in chunks]))
    rank = int(min(placed[number - 1] for number in own))
    return {
        "depth": needle.depth,
        "kind": asked.kind,
        "needle": needle.name,
        "start_s": needle.start_s,
        "question": asked.question.question,
        "expected": asked.question.answer,
        "response": answer.text,
        "right": is_right(asked.question, answer.text),
        "chunk": own[0],
        "rank": rank,
        "dense": any(chunks[number - 1].dense for number in own),
        "lot": by_lot(len(own), top_k, len(chunks) - 2) if rank else 1.0,
    }
