"""What --model_args say: which model, what is watched of a video, what a question loads of it.

Settings begin with those that the original was measured with (`evaluation.settings`); an argument replaces one. How
long an answer may be and whether it is drawn is the task's to say (`requests.generation`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pallas_kernels.attention import NAMES as KERNELS
from vxl2_jax.cli.options import WATCHING, or_none
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.settings import MODES, RELEASED, released
from vxl2_jax.generate import AskOptions

_NUMBERS: dict[str, Callable[[str], Any]] = {
    "fps": float,
    "max_frames": or_none("none"),
    "max_fps": float,
    "block_size": int,
    "prev_blocks": or_none("none"),
    "compression": int,
    "top_k": or_none("all"),
    "chunk_size": int,
    "seed": int,
}
_CHOICES = {
    "mode": tuple(MODES),
    "settings": tuple(RELEASED),
    "dtype": ("float32", "bfloat16", "float16"),
    "attention": KERNELS,
}
KNOWN = ("pretrained", *_CHOICES, *_NUMBERS, "relevance")
"""Names of --model_args."""
OF_HARNESS = ("batch_size", "max_batch_size", "device")
"""lmms-eval's own flags, handed to every model. A video's questions are one batch, and JAX chooses its device."""
OF_TASKS = ("max_new_tokens", "temperature", "top_p")
"""Options of `Model.ask` that are no arguments: a task's generation_kwargs say them."""


@dataclass(frozen=True)
class PluginOptions:
    """Arguments of `vxl2_jax.load`, and options of `Model.watch` and of `Model.ask` that hold for every task."""

    model: Mapping[str, Any]
    watch: Mapping[str, Any]
    ask: Mapping[str, Any]


def read(given: Mapping[str, Any]) -> PluginOptions:
    """The settings that --model_args stand for.

    Args:
      given: by name, as lmms-eval parsed them (numbers may be numbers). `pretrained` is a name as `vxl2_jax.load`
        takes it ("nano"); `mode` dense, chunked or bilevel ("bilevel"); `settings` the benchmark whose released
        settings are begun with ("mlvu": at most 256 frames, blocks of 4 groups and 3 before); the others are options
        of `load`, `watch` and `ask`, where none or all stands for no limit.

    Raises RequestError for a name or value that there is not.
    """
    given = {name: value for name, value in given.items() if name not in OF_HARNESS}
    if unknown := [name for name in given if name not in KNOWN]:
        hint = "; answers' lengths and sampling are the task's: --gen_kwargs" if set(unknown) & set(OF_TASKS) else ""
        raise RequestError(f"model_args: unknown {', '.join(unknown)}; known are {', '.join(KNOWN)}{hint}")
    values = {name: _value(name, str(value)) for name, value in given.items()}
    watch, ask = released(values.get("settings", "mlvu"), values.get("mode", "bilevel"))
    for option in OF_TASKS:
        del ask[option]
    changed = {name: value for name, value in values.items() if name in _NUMBERS or name == "relevance"}
    watch |= {name: value for name, value in changed.items() if name in WATCHING}
    ask |= {name: value for name, value in changed.items() if name not in WATCHING}
    AskOptions(**ask).check()
    loading = {name: values[name] for name in ("dtype", "attention") if name in values}
    return PluginOptions({"name": values.get("pretrained", "nano"), **loading}, watch, ask)


def _value(name: str, text: str) -> Any:
    if name in _CHOICES and text not in _CHOICES[name]:
        raise RequestError(f"model_args: {name}={text}: choose {', '.join(_CHOICES[name])}")
    try:
        return _NUMBERS.get(name, str)(text)
    except ValueError as error:
        kind = {int: "whole number"}.get(_NUMBERS[name], _NUMBERS[name].__name__.replace("float", "number"))
        raise RequestError(f"model_args: {name}={text} is no {kind}") from error
