"""A conversation as tokens, just as asking puts it, and the sizes that examples are padded to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vxl2_jax.buckets import bucket
from vxl2_jax.errors import RequestError
from vxl2_jax.text import prompt
from vxl2_jax.text.tokenizer import Tokenizer

_STOP = "<|im_end|>"


def tokens(
    tokenizer: Tokenizer, stop_tokens: Sequence[int], turns: Sequence[tuple[str, str]]
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, targets), int32 [Q]: what comes after the video, and the next token where it is an answer's, else −1.

    Every answer of the conversation is learnt, with the token that ends it. Before each stand the tokens that asking
    that question, with the turns before it, would put there.

    Raises RequestError where the tokenizer has no single token to end an answer that the model stops at.
    """
    stop = tokenizer.encode(_STOP)
    if len(stop) != 1 or stop[0] not in stop_tokens:
        told = f"the tokenizer gives {_STOP} as {stop}, the model stops at {list(stop_tokens)}"
        raise RequestError(f"{told}: they do not belong together; copy the tokenizer.json that the model came with")
    ids: list[int] = []
    learnt: list[bool] = []
    before = ""
    for number, (question, answer) in enumerate(turns):
        asked = prompt.suffix_text(question, turns[:number])
        between, answered = tokenizer.encode(asked.removeprefix(before)), tokenizer.encode(answer)
        before = asked + answer
        ids += between + answered
        # What follows an answer begins with the token that ends it.
        learnt += [number > 0] + [False] * (len(between) - 1) + [True] * len(answered)
    whole, wanted = np.asarray(ids + stop, np.int32), np.asarray(learnt + [True])
    return whole[:-1], np.where(wanted[1:], whole[1:], -1).astype(np.int32)


def sizes(groups: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The padded size of each example: int [N, 2] from groups [N] and global rows [N].

    Groups are rounded up; examples of as many groups get as many rows, and more groups never fewer rows. So there are
    at most eight shapes to compile for every doubling of length, and a larger size holds any smaller one.
    """
    rounded = np.array([bucket(int(n)) for n in groups])
    most = 0
    room = {}
    for size in np.unique(rounded):
        most = max(most, bucket(int(rows[rounded == size].max()), minimum=64))
        room[size] = most
    return np.stack([rounded, [room[size] for size in rounded]], axis=1)
