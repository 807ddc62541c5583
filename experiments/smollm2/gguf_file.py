"""Reads a Llama with a byte-level BPE tokenizer from a GGUF file. Needs the package gguf, of the extra `studies`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from experiments.smollm2 import llama
from vxl2_jax import CheckpointError, RequestError
from vxl2_jax.checkpoints import key_mapping
from vxl2_jax.config import LanguageConfig, ModelConfig
from vxl2_jax.errors import first_line


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file: its metadata, read at once, and its tensors, dequantised when they are asked for.

    Attributes:
      path: of the file.
      reader: gguf's.
    """

    path: Path
    reader: Any

    @cached_property
    def config(self) -> ModelConfig:
        """The geometry; of the parts that are not the language model's, it says nothing."""
        if (architecture := self._field("general.architecture")) != "llama":
            raise CheckpointError(f"{self.path}: the architecture is {architecture!r:.60}; give a Llama's file")
        width, heads = self._field("llama.embedding_length"), self._field("llama.attention.head_count")
        language = LanguageConfig(
            width=width,
            layers=self._field("llama.block_count"),
            heads=heads,
            kv_heads=self._field("llama.attention.head_count_kv"),
            head_width=width // heads,
            mlp=self._field("llama.feed_forward_length"),
            vocabulary=len(self._field("tokenizer.ggml.tokens")),
            rope_theta=self._field("llama.rope.freq_base"),
            norm_eps=self._field("llama.attention.layer_norm_rms_epsilon"),
            tied="output.weight" not in self._tensors,
        )
        return ModelConfig(language=language, stop_tokens=())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Byte-level BPE with single digits, as SmolLM2's. Special tokens in a text are not recognised."""
        kind = self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre")
        if kind != ("gpt2", "smollm"):
            raise CheckpointError(f"{self.path}: the tokenizer is {kind!r:.60}; give the file of a SmolLM2")
        vocabulary = {token: number for number, token in enumerate(self._field("tokenizer.ggml.tokens"))}
        merges = [tuple(pair.split(" ")) for pair in self._field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    @cached_property
    def types(self) -> dict[str, int]:
        """How many tensors are stored in each of gguf's types, such as Q4_1."""
        names = [tensor.tensor_type.name for tensor in self.reader.tensors]
        return {name: names.count(name) for name in sorted(set(names))}

    def params(self) -> dict:
        """The parameter tree {"language": …} in float32. Raises CheckpointError if a tensor is missing or left over."""
        import gguf

        lm = self.config.language
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, lm.layers)
        heads, tensors, left = {"q_proj": lm.heads, "k_proj": lm.kv_heads}, {}, dict(self._tensors)
        for mapping in key_mapping.language_mappings(self.config):
            for key in mapping.original_keys():
                stored = left.pop(names.get_name(key, (".weight", ".bias")), None)
                if stored is not None:
                    tensor = gguf.quants.dequantize(stored.data, stored.tensor_type)
                    rotated = heads.get(key.split(".")[-2])
                    tensors[key] = halves_from_pairs(tensor, rotated) if rotated else tensor
        return llama.to_params(tensors | {f"{self.path}: {name}": np.zeros(0) for name in left}, self.config)

    @cached_property
    def _tensors(self) -> Mapping[str, Any]:
        return {tensor.name: tensor for tensor in self.reader.tensors}

    def _field(self, name: str) -> Any:
        if name not in self.reader.fields:
            raise CheckpointError(f"{self.path}: lacks {name}; give the file of a SmolLM2")
        return self.reader.fields[name].contents()


def open_gguf(path: Path) -> GGUFFile:
    """Open a file. Raises RequestError without the package gguf, and CheckpointError for another kind of file."""
    try:
        import gguf
    except ImportError as error:
        raise RequestError("GGUF files need the package gguf; run pip install gguf") from error
    try:
        return GGUFFile(path, gguf.GGUFReader(path))
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path}: not a GGUF file ({first_line(error)}); give the file of a SmolLM2") from error


def halves_from_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key weight [heads · D, in] as transformers and we order them.

    In a Llama's GGUF file, neighbouring rows of a head are rotated together. Here row i is, with row i + D/2.
    """
    return rearrange(weight, "(h half two) i -> (h two half) i", h=heads, two=2)
