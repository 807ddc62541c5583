"""The options of watching and asking: their only definition.

Defaults, bounds and help texts stand here. The keywords of `Model.watch` and `Model.ask`, the arguments of the command
line and the model_args of the lmms-eval plug-in are made from them.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from vxl2_jax.errors import RequestError
from vxl2_jax.layout import PrefillRule
from vxl2_jax.memory import VideoMemory
from vxl2_jax.relevance import SCORERS
from vxl2_jax.relevance.oracle import PREFIX, Oracle

Function = TypeVar("Function", bound=Callable[..., Any])
RelevanceFunction = Callable[[np.ndarray, VideoMemory], Sequence[float]]
"""(int32 token ids of the question [N], memory) → C scores, one for each of memory.layout.chunks(chunk_size) chunks."""
_RANKINGS = "; ".join(f"{name} ({scorer.summary})" for name, scorer in SCORERS.items())


@dataclass(frozen=True)
class Option:
    """How one option is parsed, described and checked.

    Attributes:
      name: the Python keyword; on the command line with hyphens.
      default: its default value.
      kind: int, float or str.
      help: what it means, in one phrase.
      metavar: the placeholder in usage lines.
      none: (the word for None on the command line, what None means), if None is allowed.
      minimum, maximum: bounds, inclusive.
      positive: 0 is out of range too.
    """

    name: str
    default: Any
    kind: type
    help: str
    metavar: str
    none: tuple[str, str] | None = None
    minimum: float | None = None
    maximum: float | None = None
    positive: bool = False

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """The values that are allowed, in words."""
        lower = ["> 0"] if self.positive else [] if self.minimum is None else [f">= {self.minimum}"]
        upper = [] if self.maximum is None else [f"<= {self.maximum}"]
        number = "a whole number" if self.kind is int else "a number"
        return f"{number} {' and '.join(lower + upper)}" + (" (or None)" if self.none else "")

    def describe(self, none: str | None = None) -> str:
        """The help text, with the meaning of None, which is written as `none`."""
        return f"{self.help}; {none or self.none[0]}: {self.none[1]}" if self.none else self.help

    def parse(self, text: str) -> Any:
        """Parse a text. Raises ValueError if it is not a value of this kind."""
        if self.none and text.lower() == self.none[0]:
            return None
        try:
            return self.kind(text)
        except ValueError:
            number = "a whole number" if self.kind is int else "a number"
            raise ValueError(f"{text!r} is not {number}" + (f" or {self.none[0]}" if self.none else "")) from None

    def check(self, value: Any) -> None:
        """Raise RequestError for a number that is out of range or no number."""
        if self.kind is str or (value is None and self.none):
            return
        numbers = (int, np.integer) if self.kind is int else (int, float, np.integer, np.floating)
        valid = (
            isinstance(value, numbers)
            and math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and not (self.positive and value <= 0)
        )
        if not valid:
            raise RequestError(f"{self.name} must be {self.range}, not {value!r}")


def _option(default: Any, kind: type, metavar: str, help: str, **bounds: Any) -> Any:
    return field(default=default, metadata={"kind": kind, "metavar": metavar, "help": help, **bounds})


def options_of(cls: type) -> tuple[Option, ...]:
    """The options that `WatchOptions` or `AskOptions` holds, in order."""
    return tuple(Option(item.name, item.default, **item.metadata) for item in fields(cls))


@dataclass(frozen=True)
class WatchOptions:
    """How a video is sampled (see `video.sampling`), pre-filled (see `layout.PrefillRule`) and pooled."""

    fps: float = _option(
        1.0, float, "R", "frames sampled per second (of a folder of images: its frame rate)", positive=True
    )
    max_frames: int | None = _option(
        None,
        int,
        "N",
        "maximum number of frames: a longer video is thinned evenly, a shorter one sampled at a higher rate",
        none=("none", "no limit"),
        minimum=1,
    )
    max_fps: float = _option(
        4.0, float, "R", "highest sampling rate of a short video, in frames per second", positive=True
    )
    block_size: int = _option(
        PrefillRule.block_size, int, "B", "groups of 4 frames per block of chunked pre-filling", minimum=1
    )
    prev_blocks: int | None = _option(
        PrefillRule.prev_blocks,
        int,
        "P",
        "number of previous blocks that a block attends to",
        none=("none", "all of them (plain dense pre-filling)"),
        minimum=0,
    )
    compression: int = _option(4, int, "C", "visual tokens mean-pooled into one in sparse chunks", minimum=1)

    @property
    def sampling(self) -> dict[str, Any]:
        """The keywords of `video.reader.open_video`."""
        return {"fps": self.fps, "max_frames": self.max_frames, "max_fps": self.max_fps}

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
        str,
        "NAME",
        f"how chunks are ranked: {_RANKINGS}; or {PREFIX}FILE (the original's selections; a file or a folder)",
    )
    top_k: int | None = _option(
        4,
        int,
        "K",
        "chunks loaded dense, besides the first and the last one",
        none=("all", "all of them"),
        minimum=0,
    )
    chunk_size: int = _option(4, int, "G", "groups of 4 frames per chunk", minimum=1)
    max_new_tokens: int = _option(64, int, "N", "maximum length of an answer, in tokens", minimum=1)
    temperature: float = _option(0.0, float, "T", "sampling temperature; 0 is greedy", minimum=0)
    top_p: float = _option(
        1.0, float, "P", "sample from the most likely tokens of this total probability", positive=True, maximum=1
    )
    seed: int = _option(0, int, "S", "seed of sampling and of relevance=random", minimum=0, maximum=2**63 - 1)

    def check(self) -> None:
        """Raise RequestError for a value out of range or an unknown scorer."""
        _check(self)
        name = self.relevance
        if isinstance(name, str) and name not in SCORERS and not name.startswith(PREFIX):
            names = ", ".join(SCORERS)
            raise RequestError(f"unknown relevance {name!r}: choose {names}, {PREFIX}FILE or a function")


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
