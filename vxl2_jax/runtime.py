"""A loaded model as data: parameters, tokenizer, attention kernel and batch sizes."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax.config import ModelConfig
from vxl2_jax.hardware import CPU, BatchSizes, numerics
from vxl2_jax.scope import Scope
from vxl2_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
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
      sizes: batch sizes for this machine.
      scope: of a toy model, what it was trained on.
    """

    name: str
    config: ModelConfig
    params: Any = field(repr=False)
    tokenizer: Tokenizer | Any = field(repr=False)
    fingerprint: str
    kernel: Kernel = REFERENCE
    kernel_reason: str = "reference"
    sizes: BatchSizes = CPU
    scope: Scope | None = field(default=None, repr=False)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of weights, activations and memories."""
        return self.params["language"]["embed"].dtype

    @property
    def weights_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    def precision(self) -> AbstractContextManager[Any]:
        """The context of all computations with the model; see `hardware.numerics`."""
        return numerics(self.dtype)


def fingerprint_of(config: ModelConfig, params: Any) -> str:
    """A hash of the geometry and a few weights: enough to refuse a memory that another model made."""
    digest = hashlib.sha256(repr(config).encode())
    for leaf in (params["language"]["norm"]["scale"], params["projector"]["linear_out"]["bias"]):
        digest.update(np.asarray(leaf.astype(jnp.float32)).tobytes())
    return digest.hexdigest()[:16]
