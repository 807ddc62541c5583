"""Loading a model: a checkpoint's parameters on one device or on several, with the attention kernel that suits it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pallas_kernels import attention as kernels
from vxl2_jax import hardware, hosts, kernel_trial, planning, scope, tensor_parallel
from vxl2_jax.checkpoints import fetch
from vxl2_jax.compile_cache import enable as enable_compile_cache
from vxl2_jax.errors import RequestError, shown
from vxl2_jax.files import check_path
from vxl2_jax.models import quantised, qwen2
from vxl2_jax.options import AUTO
from vxl2_jax.runtime import Runtime, fingerprint_of
from vxl2_jax.text.tokenizer import Tokenizer

Progress = Callable[[int, int], Any]
"""Called with (number done, total)."""


def load_runtime(
    name: str | Path,
    dtype: Any = None,
    *,
    weights: str | None = None,
    attention: str = "auto",
    progress: Progress | None = None,
    compile_cache: bool = True,
    mesh: str | None = None,
    stacked: bool = False,
) -> Runtime:
    """Load a model as data; see `api.load`.

    stacked: keep the layers of the language model in one stack on every device, as training takes them.
    """
    name = name if isinstance(name, str) else check_path(name, "the name of a model")
    if compile_cache:
        enable_compile_cache()
    device = hardware.device()
    dtype = hardware.default_dtype(device) if dtype is None else dtype
    if str(getattr(dtype, "name", None) or getattr(dtype, "__name__", dtype)) not in DTYPES:
        raise RequestError(f"dtype must be {', '.join(DTYPES)} or None, not {shown(dtype)}")
    check_weights(weights)
    shape = tensor_parallel.parse(mesh)
    if shape.devices == 1 and hosts.several():
        raise RequestError("several hosts need a mesh of all their devices: give mesh, as in sequence=8")
    # Check the kernel's name before a large model is loaded.
    _choose(kernels.choose_kernel, attention, dtype, _COMMON_HEAD_WIDTH)
    with hardware.numerics(dtype):
        directory = fetch.find(name)
        tokenizer, known = Tokenizer.read(directory), scope.read(directory)
        why = ""
        if weights == AUTO:
            weights, why = _fitting_weights(directory, tokenizer, jnp.dtype(dtype), attention, shape)
        sizes = hardware.sizes_for(device)
        if sizes.vision_groups % shape.model:
            raise RequestError(
                f"mesh {shape}: model does not divide batches of {sizes.vision_groups} groups; choose a divisor"
            )
        placed = None
        if shape.devices > 1:
            # Straight to the shards: the whole model may be too large for one device, and for the host.
            placed = partial(tensor_parallel.placed, tensor_parallel.make_mesh(fetch.describe(directory)[0], shape))
        config, params = fetch.read(directory, dtype, progress, weights, placed)
        if hardware.compiler_for(device).separate_layers and not stacked:
            params = params | {"language": qwen2.separate_layers(params["language"])}
        kernel, reason, fallback = _choose(
            partial(kernels.choose_tested_kernel, test=kernel_trial.trial), attention, dtype, config.language.head_width
        )
    log, weights_reason = logging.getLogger("vxl2_jax"), quantised.setting_of(params) + (f" ({why})" if why else "")
    # A fallback is slower than what was to be expected: worth a line wherever warnings are shown.
    log.log(logging.WARNING if fallback else logging.INFO, "attention: %s", reason)
    log.info("weights: %s", weights_reason)
    limit = hardware.memory_bytes(device)
    if limit and tensor_parallel.device_bytes(params) > _LARGE * limit and (more := hardware.unused_memory(device)):
        log.warning("memory: %s", more)
    return Runtime(
        str(name),
        config,
        params,
        tokenizer,
        fingerprint_of(config, params),
        kernel,
        reason,
        weights_reason,
        sizes,
        known,
        attention,
    )


DTYPES = ("float32", "bfloat16", "float16")
"""What `load` takes."""
WEIGHTS = (*quantised.SETTINGS, AUTO)
"""What `load` takes, besides None."""
_COMMON_HEAD_WIDTH = 128
_LARGE = 0.1
"""Share of a device's memory from which on a model leaves less room than long videos want."""


def check_weights(weights: str | None) -> None:
    """Raise RequestError for what is no setting of weights."""
    if weights is not None and weights not in WEIGHTS:
        raise RequestError(f"weights must be {', '.join(WEIGHTS)} or None, not {shown(weights)}")


def _fitting_weights(
    directory: Path, tokenizer: Any, dtype: np.dtype, attention: str, mesh: tensor_parallel.MeshShape
) -> tuple[str, str]:
    """(the setting that `auto` takes for a checkpoint, the reason)."""
    config, stored = fetch.describe(directory)
    if stored != quantised.WIDE:
        return stored, "as stored"
    device = hardware.device()
    limit = hardware.memory_bytes(device)
    if device.platform == "cpu" or limit is None:
        return quantised.WIDE, "on a CPU" if device.platform == "cpu" else "the device's memory is unknown"
    kernel = _choose(kernels.choose_kernel, attention, dtype, config.language.head_width).kernel
    return planning.fitting_weights(
        config,
        tokenizer,
        limit,
        itemsize=dtype.itemsize,
        devices=mesh.model,
        sequence=mesh.sequence,
        sizes=hardware.sizes_for(device),
        kernel=kernel,
        compiler=hardware.compiler_for(device),
    )


def _choose(choose: Callable[..., kernels.KernelChoice], name: str, dtype: Any, width: int) -> kernels.KernelChoice:
    try:
        return choose(name, dtype=dtype, width=width, device=hardware.device())
    except ValueError as error:
        raise RequestError(str(error)) from error
