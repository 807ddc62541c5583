"""The options of watching and asking, and the range of every number: their only definition.

Defaults, ranges and help texts stand here. The keywords of `Model.watch` and `Model.ask`, the arguments of the command
line and the model_args of the lmms-eval plug-in are made from them; settings of training have the same ranges.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from vxl2_jax.errors import RequestError, shown
from vxl2_jax.layout import PrefillRule
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models.quantised import INT8, WIDE
from vxl2_jax.relevance import SCORERS
from vxl2_jax.relevance.oracle import PREFIX, Oracle
from vxl2_jax.text.prompt import MAX_QUESTION_TOKENS, ORIGINAL, PLAIN, STYLES
from vxl2_jax.video.reader import ALL, DECODERS, FRAMES_FROM, HARDWARE, KEY_FRAMES, MAX_THREADS, SOFTWARE

Function = TypeVar("Function", bound=Callable[..., Any])
RelevanceFunction = Callable[[np.ndarray, VideoMemory], Sequence[float]]
"""(int32 token ids of the question [N], memory) → C scores, one for each of memory.layout.chunks(chunk_size) chunks."""
_RANKINGS = "; ".join(f"{name} ({scorer.summary})" for name, scorer in SCORERS.items())


_NUMERALS = {
    int: re.compile(r"[+-]?[0-9]+"),
    float: re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"),
}
"""Numbers in text. Python's own `int` and `float` take "1_0", " 5 " and the digits of other scripts as well."""


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes, both bounds included.

    Attributes:
      kind: int or float.
      none: the word for None in text, if None is allowed.
    """

    kind: type
    minimum: float
    maximum: float
    none: str | None = None

    def __str__(self) -> str:
        number, form = ("a whole number", ",") if self.kind is int else ("a number", ",g")
        return f"{number} from {self.minimum:{form}} to {self.maximum:{form}}" + (
            f", or {self.none}" if self.none else ""
        )

    def parse(self, name: str, text: str) -> Any:
        """The value in a text: decimal digits of ASCII, with nothing around or between them. Raises RequestError, as `check`."""
        if self.none and text.lower() == self.none:
            return None
        value: Any = text
        if _NUMERALS[self.kind].fullmatch(text):
            with suppress(ValueError):  # an integer of more than 4,300 digits
                value = self.kind(text)
        self.check(name, value)
        return value

    def read(self, name: str, value: Any) -> Any:
        """A value that may be a text or a number already. Raises RequestError, as `check`."""
        if isinstance(value, str):
            return self.parse(name, value)
        self.check(name, value)
        return value if value is None else self.kind(value)

    def check(self, name: str, value: Any) -> None:
        """Raise RequestError if `value`, which the user knows as `name`, is no number in this range."""
        if value is None and self.none:
            return
        numbers = (int, np.integer) if self.kind is int else (int, float, np.integer, np.floating)
        is_number = isinstance(value, numbers) and not isinstance(value, bool)
        if not (is_number and self.minimum <= value <= self.maximum):
            raise RequestError(f"{name} must be {self}, not {shown(value)}")


_COUNT, _MANY = 1_000_000, 1_000_000_000
RANGES: dict[str, Range] = {
    # Watching.
    "fps": Range(float, 1e-6, 1000),
    "max_frames": Range(int, 1, _COUNT, "none"),
    "max_fps": Range(float, 1e-6, 1000),
    "block_size": Range(int, 1, _COUNT),
    "prev_blocks": Range(int, 0, _COUNT, "none"),
    "compression": Range(int, 1, 4096),
    "stream": Range(int, 0, 10_000, "auto"),
    "read_threads": Range(int, 1, 1024, "auto"),
    # Asking.
    "top_k": Range(int, 0, _COUNT, "all"),
    "chunk_size": Range(int, 1, _COUNT, "auto"),
    "max_new_tokens": Range(int, 1, MAX_QUESTION_TOKENS),
    "temperature": Range(float, 0, 100),
    "top_p": Range(float, 1e-6, 1),
    "seed": Range(int, 0, 2**63 - 1),
    # Planning.
    "frames": Range(int, 1, 200_000),
    "cores": Range(int, 1, 4096),
    "question_tokens": Range(int, 0, MAX_QUESTION_TOKENS),
    # Evaluation.
    "limit": Range(int, 1, _COUNT),
    "workers": Range(int, 1, 10_000),
    # Training.
    "batch": Range(int, 1, 65_536),
    "learning_rate": Range(float, 1e-12, 1000),
    "steps": Range(int, 1, _MANY),
    "epochs": Range(int, 1, _COUNT),
    "warmup": Range(int, 0, _MANY),
    "final_lr_scale": Range(float, 0, 1),
    "max_grad_norm": Range(float, 1e-9, 1e9),
    "weight_decay": Range(float, 0, 1000),
    "rank": Range(int, 1, 65_536),
    "alpha": Range(float, 1e-6, 1e6),
    "log_every": Range(int, 1, _MANY),
    "every": Range(int, 1, _MANY),
    "keep": Range(int, 1, _COUNT),
    "cache_gb": Range(float, 0, 1e6),
    "data": Range(int, 1, 65_536, "all"),
    "model": Range(int, 1, 65_536),
}
"""The range of every number that a user gives: on the command line, as a keyword, in a settings file or to lmms-eval."""


@dataclass(frozen=True)
class Option:
    """How one option is parsed, described and checked.

    Attributes:
      name: the Python keyword; on the command line with hyphens.
      default: its default value.
      help: what it means, in one phrase.
      metavar: the placeholder in usage lines.
      none: what None means, if None is allowed.
      choices: the texts that are allowed; None: any text, or a number.
    """

    name: str
    default: Any
    help: str
    metavar: str
    none: str | None = None
    choices: tuple[str, ...] | None = None

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> Range | None:
        """The numbers that are allowed; None for a text."""
        return RANGES.get(self.name)

    @property
    def none_word(self) -> str | None:
        """The word for None in text, if None is allowed."""
        return self.range.none if self.range else None

    def describe(self, none: str | None = None) -> str:
        """The help text, with the meaning of None, which is written as `none`."""
        return f"{self.help}; {none or self.none_word}: {self.none}" if self.none else self.help

    def parse(self, text: str) -> Any:
        """The value in a text. Raises RequestError if it is not in range."""
        if self.range:
            return self.range.parse(self.name, text)
        self.check(text)
        return text

    def check(self, value: Any) -> None:
        """Raise RequestError for a number that is out of range or no number, or a text that is not among the choices."""
        if self.range:
            self.range.check(self.name, value)
        elif self.choices and not (isinstance(value, str) and value in self.choices):
            raise RequestError(f"{self.name} must be {' or '.join(self.choices)}, not {shown(value)}")


def _option(default: Any, metavar: str, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"metavar": metavar, "help": help, **more})


def options_of(cls: type) -> tuple[Option, ...]:
    """The options that `WatchOptions` or `AskOptions` holds, in order."""
    return tuple(Option(item.name, item.default, **item.metadata) for item in fields(cls))


CACHES = (WIDE, INT8)
"""How keys and values can be held."""
AUTO, DEVICE, HOST = "auto", "device", "host"
PLACES = (AUTO, DEVICE, HOST)
"""Where the dense level of a memory can be."""
MAX_CHUNK_SIZE, CHUNKS = 4, 16
"""The default chunk size, and the number of chunks that shorter videos are divided into. So there is something to select:
with the default top_k, 6 of at least 16 chunks are dense, unless the video has fewer than 16 groups."""


def chunk_size_for(groups: int) -> int:
    """The default chunk size of a video of `groups` groups, in groups."""
    return min(max(groups // CHUNKS, 1), MAX_CHUNK_SIZE)


@dataclass(frozen=True)
class WatchOptions:
    """How a video is sampled (see `video.sampling`), pre-filled (see `layout.PrefillRule`) and pooled."""

    fps: float = _option(1.0, "R", "frames sampled per second (of a folder of images: its frame rate)")
    max_frames: int | None = _option(
        None,
        "N",
        "maximum number of frames: a longer video is thinned evenly, a shorter one sampled at a higher rate",
        none="no limit",
    )
    max_fps: float = _option(4.0, "R", "highest sampling rate of a short video, in frames per second")
    frames_from: str = _option(
        ALL,
        "KIND",
        f"which frames of the file are candidates: {ALL}, or {KEY_FRAMES} (much faster to read: at each time, the last key "
        "frame before it)",
        choices=FRAMES_FROM,
    )
    stream: int | None = _option(
        None, "N", "number of the video stream in the file", none="the longest, and of these the largest picture"
    )
    decoder: str = _option(
        SOFTWARE,
        "KIND",
        f"how the video is decoded: {SOFTWARE}, or {HARDWARE} (on a device that FFmpeg knows, if it can)",
        choices=DECODERS,
    )
    read_threads: int | None = _option(
        None, "N", "threads that decode the video", none=f"one per CPU core, at most {MAX_THREADS}"
    )
    block_size: int = _option(PrefillRule.block_size, "B", "groups of 4 frames per block of chunk-based pre-filling")
    prev_blocks: int | None = _option(
        PrefillRule.prev_blocks,
        "P",
        "number of previous blocks that a block attends to, besides itself",
        none="all of them (plain dense pre-filling)",
    )
    compression: int = _option(4, "C", "visual tokens mean-pooled into one in sparse chunks")
    cache: str = _option(
        WIDE,
        "KIND",
        f"how keys and values are held: {WIDE}, in the model's dtype, or {INT8}, in half the bytes of 16-bit ones",
        choices=CACHES,
    )
    dense_level: str = _option(
        AUTO,
        "PLACE",
        f"where the dense level (the keys and values before pooling) is held: {DEVICE}; {HOST}, in host memory, from which it is "
        f"copied layer by layer (slower, the same results); or {AUTO}: in host memory only if the device has no room",
        choices=PLACES,
    )

    @property
    def sampling(self) -> dict[str, Any]:
        """The keywords of `video.reader.open_video`."""
        names = ("fps", "max_frames", "max_fps", "frames_from", "stream", "decoder", "read_threads")
        return {name: getattr(self, name) for name in names}

    @property
    def rule(self) -> PrefillRule:
        """The rule of chunked pre-filling."""
        return PrefillRule(self.block_size, self.prev_blocks)

    def check(self) -> None:
        """Raise RequestError for a value out of range. The model limits `compression` further."""
        _check(self)


@dataclass(frozen=True)
class AskOptions:
    """How chunks are selected for a question, and how its answer is decoded."""

    relevance: str | RelevanceFunction | Oracle = _option(
        "attention",
        "NAME",
        f"how chunks are ranked: {_RANKINGS}; or {PREFIX}FILE (the original's selections; a file or a folder)",
    )
    top_k: int | None = _option(4, "K", "chunks loaded dense, besides the first and the last one", none="all of them")
    chunk_size: int | None = _option(
        None,
        "G",
        "groups of 4 frames per chunk",
        none=f"a {CHUNKS}th of the video, from 1 to {MAX_CHUNK_SIZE}",
    )
    max_new_tokens: int = _option(64, "N", "maximum length of an answer, in tokens")
    temperature: float = _option(0.0, "T", "sampling temperature; 0 is greedy")
    top_p: float = _option(1.0, "P", "sample from the most likely tokens of this total probability")
    seed: int = _option(0, "S", "seed of sampling and of relevance=random")
    text: str = _option(
        PLAIN,
        "STYLE",
        f"how questions are read. {PLAIN}: special tokens in them are ordinary text, and clock times become seconds; "
        f"{ORIGINAL}: as the original does, special tokens act, and only mm:ss becomes seconds",
        choices=STYLES,
    )

    def chunk_groups(self, groups: int) -> int:
        """Groups per chunk of a video of `groups` groups."""
        return self.chunk_size or chunk_size_for(groups)

    def check(self) -> None:
        """Raise RequestError for a value out of range or an unknown scorer."""
        _check(self)
        name = self.relevance
        known = name in SCORERS or name.startswith(PREFIX) if isinstance(name, str) else False
        if not (known or callable(name) or isinstance(name, Oracle)):
            names = ", ".join(SCORERS)
            raise RequestError(f"unknown relevance {shown(name)}: choose {names}, {PREFIX}FILE or a function")


def _check(options: WatchOptions | AskOptions) -> None:
    for option in options_of(type(options)):
        option.check(getattr(options, option.name))


def takes(cls: type) -> Callable[[Function], Function]:
    """Decorate a function that passes its **keywords to `cls`: `help()` and editors then show the options.

    The function's signature lists them, and their descriptions replace the line "{options}" of its docstring.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        keyword_only = inspect.Parameter.KEYWORD_ONLY
        given = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [
            inspect.Parameter(item.name, keyword_only, default=item.default, annotation=item.type)
            for item in fields(cls)
        ]
        first = next((i for i, item in enumerate(given) if item.kind is keyword_only), len(given))
        parameters = [*given[:first], *options, *given[first:]]
        function.__signature__ = signature.replace(parameters=parameters)  # pyrefly: ignore[missing-attribute]
        lines = [
            textwrap.fill(f"{option.name}: {option.describe('None')}.", 108, subsequent_indent=" " * 12)
            for option in options_of(cls)
        ]
        function.__doc__ = (function.__doc__ or "").replace("{options}", "\n          ".join(lines))
        return function

    return decorate
