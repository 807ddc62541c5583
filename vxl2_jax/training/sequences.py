"""Conversations as tokens, exactly as in inference, and the sizes that samples are padded to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from vxl2_jax.buckets import bucket
from vxl2_jax.errors import RequestError
from vxl2_jax.text import prompt
from vxl2_jax.text.tokenizer import Tokenizer

_END_OF_TURN = "<|im_end|>"


def tokens(
    tokenizer: Tokenizer, stop_tokens: Sequence[int], turns: Sequence[tuple[str, str]]
) -> tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " N"]]:
    """(ids, targets) of a conversation: the tokens after the video, and the next token where an answer is predicted, else −1.

    Every answer is trained on, including the token that ends it. The tokens before it are those of asking its question
    with the earlier turns as history.

    Raises:
      RequestError: the tokenizer has no single end-of-turn token, or generation does not stop at it.
    """
    stop = tokenizer.encode(_END_OF_TURN)
    if len(stop) != 1 or stop[0] not in stop_tokens:
        raise RequestError(
            f"the tokenizer encodes {_END_OF_TURN} as {stop}, but the model stops at {list(stop_tokens)}; "
            "use the tokenizer.json that came with the model"
        )
    ids: list[int] = []
    is_answer: list[bool] = []
    for index, (question, answer) in enumerate(turns):
        question_ids = prompt.suffix_ids(tokenizer, question, turns[:index])[len(ids) :]
        answer_ids = tokenizer.encode_plain(answer)
        ids += question_ids + answer_ids
        # The text after an answer starts with the token that ends it.
        is_answer += [index > 0] + [False] * (len(question_ids) - 1) + [True] * len(answer_ids)
    all_ids, predicted = np.asarray(ids + stop, np.int32), np.asarray(is_answer + [True])
    return all_ids[:-1], np.where(predicted[1:], all_ids[1:], -1).astype(np.int32)


def sizes(groups: Int[np.ndarray, " N"], rows: Int[np.ndarray, " N"]) -> Int[np.ndarray, "N 2"]:
    """The padded size (groups, global rows) of each sample.

    Groups are rounded up. Samples of equal groups get equal rows, and more groups never get fewer rows. So there are at
    most eight shapes to compile per doubling of the length, and a larger size holds every smaller one.
    """
    rounded = np.array([bucket(int(n)) for n in groups])
    largest = 0
    capacity = {}
    for size in np.unique(rounded):
        largest = max(largest, bucket(int(rows[rounded == size].max()), minimum=64))
        capacity[size] = largest
    return np.stack([rounded, [capacity[size] for size in rounded]], axis=1)
