"""A Llama as our decoder: that of Qwen2 with q, k and v biases of zero."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from vxl2_jax import CheckpointError
from vxl2_jax.checkpoints import huggingface, key_mapping
from vxl2_jax.config import ModelConfig


def to_params(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict:
    """Our parameter tree {"language": …} in float32, by the name table.

    tensors: by transformers' names. Raises CheckpointError if one is missing, or left over.
    """
    unused = {key for key in tensors if key != "lm_head.weight" or not config.language.tied}

    def get(key: str) -> np.ndarray:
        unused.discard(key)
        if key in tensors:
            return tensors[key]
        if not key.endswith("_proj.bias"):
            raise CheckpointError(f"the weights lack {key}; give a Llama's")
        return np.zeros(get(key.removesuffix("bias") + "weight").shape[0], np.float32)

    params = huggingface.build_params(key_mapping.language_mappings(config), get, jnp.float32)
    if unused:
        raise CheckpointError(f"{len(unused)} weights have no place in our tree, such as {min(unused)}; give a Llama's")
    return params
