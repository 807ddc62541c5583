"""Parse --model_args: the model, and the options of watching and asking.

Options start from the original's released settings (`evaluation.settings`), and an argument replaces one of them. The
length of answers and sampling are set by the task (`requests.generation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pallas_kernels.attention import NAMES as KERNELS
from vxl2_jax.errors import RequestError, shown
from vxl2_jax.evaluation.settings import MODES, RELEASED, released
from vxl2_jax.loading import DTYPES, WEIGHTS
from vxl2_jax.options import AskOptions, WatchOptions, options_of

OF_HARNESS = ("batch_size", "max_batch_size", "device")
"""lmms-eval's own flags, which every model receives. They are ignored: a video's questions are one batch, and JAX chooses
its device."""
OF_TASKS = ("max_new_tokens", "temperature", "top_p")
"""Options of `Model.ask` that are not arguments: a task's generation_kwargs set them."""
_CHOICES = {
    "mode": tuple(MODES),
    "settings": tuple(RELEASED),
    "dtype": DTYPES,
    "weights": WEIGHTS,
    "attention": KERNELS,
}
_WATCH = {option.name: option for option in options_of(WatchOptions)}
_ASK = {option.name: option for option in options_of(AskOptions) if option.name not in OF_TASKS}
KNOWN = ("pretrained", *_CHOICES, "mesh", *_WATCH, *_ASK)
"""Names of --model_args."""


@dataclass(frozen=True)
class PluginOptions:
    """Keywords of `vxl2_jax.load`, and the options of `Model.watch` and `Model.ask` for every task."""

    model: Mapping[str, Any]
    watch: Mapping[str, Any]
    ask: Mapping[str, Any]


def read(model_args: Mapping[str, Any]) -> PluginOptions:
    """Parse --model_args.

    Args:
      model_args: by name, as lmms-eval parsed them (some values may be numbers). `pretrained` is the name that
        `vxl2_jax.load` takes (default "nano"); `mode` is dense, chunked or bilevel (default); `settings` is the benchmark
        whose released settings are the defaults ("mlvu": at most 256 frames, blocks of 4 groups that attend to 3 before);
        the others are options of `load`, `watch` and `ask`, in the words of the command line (none, all).

    Raises:
      RequestError: an unknown name or an invalid value.
    """
    model_args = {name: value for name, value in model_args.items() if name not in OF_HARNESS}
    if unknown := [name for name in model_args if name not in KNOWN]:
        hint = "; set answer length and sampling with --gen_kwargs" if set(unknown) & set(OF_TASKS) else ""
        raise RequestError(
            f"model_args: unknown {', '.join(map(str, unknown)):.200}; known are {', '.join(KNOWN)}{hint}"
        )
    values = {name: _read(name, value) for name, value in model_args.items()}
    watch, ask = released(values.get("settings", "mlvu"), values.get("mode", "bilevel"))
    watch |= {name: value for name, value in values.items() if name in _WATCH}
    ask |= {name: value for name, value in values.items() if name in _ASK}
    ask = {name: value for name, value in ask.items() if name not in OF_TASKS}
    WatchOptions(**watch).check()
    AskOptions(**ask).check()
    loading = {name: values[name] for name in ("dtype", "weights", "attention", "mesh") if name in values}
    return PluginOptions({"name": values.get("pretrained", "nano"), **loading}, watch, ask)


def _read(name: str, value: Any) -> Any:
    option = _WATCH.get(name) or _ASK.get(name)
    if option and option.range:
        return option.range.read(name, value)
    try:
        text = str(value)
    except (ValueError, RecursionError) as error:  # an integer of more than 4,300 digits
        raise RequestError(f"model_args: {name} must be a text, not {shown(value)}") from error
    if name in _CHOICES and text not in _CHOICES[name]:
        raise RequestError(f"model_args: {name}={text:.60}: choose {', '.join(_CHOICES[name])}")
    return option.parse(text) if option else text
