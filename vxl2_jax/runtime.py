"""A loaded model as data: parameters, tokenizer, attention kernel and batch sizes."""

from __future__ import annotations

import hashlib
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import REFERENCE, Kernel, choose_tested_kernel, kernel_refusal
from vxl2_jax import kernel_trial, notebook
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import RequestError
from vxl2_jax.hardware import CPU, BatchSizes, device, numerics
from vxl2_jax.models import quantised, qwen2
from vxl2_jax.scope import Scope
from vxl2_jax.tensor_parallel import mesh_of, shape_of
from vxl2_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True, repr=False)
class Runtime:
    """A loaded model. Nothing in it changes after loading.

    Attributes:
      name: the name it was loaded by.
      config: the model's geometry.
      params: the pytree of parameters.
      tokenizer: anything with the methods of `text.tokenizer.Tokenizer`.
      fingerprint: identifies the weights; a memory belongs to one fingerprint (see `fingerprint_of`).
      kernel: the attention kernel.
      kernel_reason: why this kernel was chosen, in one line.
      weights_reason: how the weights are held, and why if that was chosen automatically, in one line.
      sizes: batch sizes for this machine.
      scope: of a toy model, what it was trained on.
      attention: the kernel that was asked for by name, or auto.
    """

    name: str
    config: ModelConfig
    params: Any
    tokenizer: Tokenizer | Any
    fingerprint: str
    kernel: Kernel = REFERENCE
    kernel_reason: str = "reference"
    weights_reason: str = ""
    sizes: BatchSizes = CPU
    scope: Scope | None = None
    attention: str = "auto"

    @property
    def dtype(self) -> np.dtype:
        """The dtype of activations, memories and wide weights."""
        return qwen2.dtype_of(self.params["language"])

    def cache_dtype(self, setting: str) -> np.dtype:
        """The dtype of keys and values in a setting of `options.CACHES`."""
        return np.dtype(jnp.int8) if setting == quantised.INT8 else self.dtype

    def kernel_for(self, cache_dtype: np.dtype) -> Kernel:
        """The kernel that reads memories of a dtype: `kernel`, or of memories in int8 another one if that does not read
        them. Raises RequestError if the kernel that was asked for by name does not read them."""
        kernel, width = self.kernel, self.config.language.head_width
        if cache_dtype != jnp.int8:
            return kernel
        if self.attention == "auto" and not kernel.interpret:
            return tested_kernel(self.dtype, width, cache_dtype)
        if why := kernel_refusal(kernel, self.dtype, width, cache_dtype=cache_dtype):
            raise RequestError(why)
        return kernel

    @property
    def groups_per_call(self) -> int:
        """Groups that are pre-filled at a time: a stride, or a stride of every device among which a video is shared."""
        return self.sizes.stride * shape_of(mesh_of(self.params)).sequence

    @property
    def weights_bytes(self) -> int:
        """Bytes of all parameters."""
        return quantised.bytes_of(self.params)

    @property
    def weights(self) -> str:
        """How the weights are held: one of `models.quantised.SETTINGS`."""
        return quantised.setting_of(self.params)

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}".strip() for name, value in self._facts().items())
        return f"{type(self).__name__}({self.name!r}, {facts})"

    def _repr_html_(self) -> str:
        return notebook.card(self.name, self._facts())

    def _facts(self) -> dict[str, str]:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return {
            "": f"{count / 1e6:,.1f} M parameters",
            "dtype": self.dtype.name,
            "weights": f"{self.weights_bytes / 1e6:,.1f} MB",
            "attention": self.kernel.name,
        }

    def precision(self) -> AbstractContextManager[Any]:
        """The context of all computations with the model; see `hardware.numerics`."""
        return numerics(self.dtype)


@cache
def tested_kernel(dtype: np.dtype, width: int, cache_dtype: np.dtype) -> Kernel:
    """The best kernel of this machine for a model's dtype and head width and for caches of another dtype."""
    with numerics(dtype):
        choice = choose_tested_kernel(
            dtype=dtype, width=width, cache_dtype=cache_dtype, device=device(), test=kernel_trial.trial
        )
    level = logging.WARNING if choice.fallback else logging.INFO
    logging.getLogger("vxl2_jax").log(level, "attention over memories in %s: %s", cache_dtype, choice.reason)
    return choice.kernel


def weights_in(fingerprint: str) -> str:
    """How the weights of the model with this fingerprint are held."""
    return fingerprint.partition("-")[2] or quantised.WIDE


def fingerprint_of(config: ModelConfig, params: Any) -> str:
    """A hash of the geometry and a few weights: enough to refuse a memory that another model made.

    That of a quantised model ends in its setting, as in "0123456789abcdef-int8": it computes other keys and values. With
    another choice of layers whose activations are wide, a w8a8 model has another one.
    """
    digest = hashlib.sha256(repr(config).encode())
    for leaf in (params["language"]["norm"]["scale"], params["projector"]["linear_out"]["bias"]):
        digest.update(np.asarray(leaf.astype(jnp.float32)).tobytes())
    setting = quantised.setting_of(params)
    if setting == quantised.W8A8:
        digest.update(repr(quantised.wide_inputs(params)).encode())
    return digest.hexdigest()[:16] + ("" if setting == quantised.WIDE else f"-{setting}")
