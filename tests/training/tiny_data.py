"""A vocabulary of a few words, and clips of noise."""

from pathlib import Path

import av
import numpy as np
import tokenizers

WORDS = [
    "<unk>",
    "<visual>",
    "<|im_start|>",
    "<|im_end|>",
    "system",
    "you",
    "are",
    "a",
    "helpful",
    "assistant",
    "user",
    ".",
    "time",
    "s",
    ":",
    "?",
    "is",
    "there",
    "what",
    "yes",
    "no",
    "dog",
    "cat",
]


def word_tokenizer() -> str:
    """A word-level tokenizer with numbers 0 … 99, as JSON."""
    words = WORDS + [str(n) for n in range(100)]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"<\|im_(start|end)\|>|[0-9]+|[A-Za-z]+|[^\s\w]"), "isolated"
    )
    return inner.to_str()


def write_clip(path: Path, seconds: int, seed: int) -> Path:
    """An mp4 of noise in large patches, two frames a second."""
    frames = np.random.default_rng(seed).integers(0, 256, (2 * seconds, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
