"""A tiny model with random weights, a short clip, and the command line called in this process."""

from collections.abc import Callable
from typing import NamedTuple

import av
import numpy as np
import pytest
import tokenizers
import toys

import vxl2_jax as vxl2
from vxl2_jax import cli
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import LanguageConfig, ModelConfig, VisionConfig

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
]


# Every other number of new tokens, dense chunks or tokens of a chunk compiles another program, which takes seconds.
ASKED = {"top_k": 1, "chunk_size": 2, "max_new_tokens": 6}
# The same on the command line, for a video of two groups.
SHORT = ("--max-new-tokens", 2, "--max-frames", 8)


CONFIG = ModelConfig(
    vision=VisionConfig(image_size=42, patch_size=14, width=32, layers=2, heads=2, mlp=48),
    language=LanguageConfig(
        width=32, layers=3, heads=4, kv_heads=2, head_width=8, mlp=48, vocabulary=len(WORDS) + 100, rope_theta=1e4
    ),
    resized_grid=2,
    pool=1,
    norm_groups=8,
    visual_placeholder=1,
    stop_tokens=(3,),
)
"""The geometry of the tiny model."""


class Result(NamedTuple):
    """What a command returned and printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys) -> Callable[..., Result]:
    """Runs `vxl2` with these arguments in this process."""

    def run(*args: object) -> Result:
        capsys.readouterr()
        try:
            code = cli.main([str(arg) for arg in args])
        except SystemExit as stop:  # argparse: --help and usage errors
            code = stop.code
        return Result(code, *capsys.readouterr())

    return run


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


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A checkpoint directory in the original's layout."""
    directory = tmp_path_factory.mktemp("model")
    huggingface.save(directory, CONFIG, toys.model(CONFIG).params, "float32")
    (directory / "tokenizer.json").write_text(word_tokenizer())
    return directory


@pytest.fixture(scope="session")
def model(model_dir):
    return vxl2.load(model_dir)


def noise(frames: int, seed: int = 0, side: int = 42):
    """(frames, seconds): a video of noise at one frame a second."""
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), np.uint8)
    return pixels, np.arange(frames, dtype=float)


@pytest.fixture(scope="session")
def memory(model):
    """Of 40 noise frames, ten groups. Tests that need nothing else ask this one with `ASKED`: one program for all."""
    return model.watch(noise(40))


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A 40-second mp4 at 4 frames per second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.random.default_rng(1).integers(0, 256, (160, 4, 4, 3), np.uint8).repeat(12, 1).repeat(12, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
