"""A tokenizer.json, through the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

from vxl2_jax.errors import CheckpointError


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back; `json` is the content of a tokenizer.json."""

    json: str = field(repr=False)

    def __post_init__(self):
        object.__setattr__(self, "_inner", tokenizers.Tokenizer.from_str(self.json))

    @classmethod
    def read(cls, directory: Path) -> Tokenizer:
        """Raises CheckpointError when the directory has no readable tokenizer.json."""
        path = directory / "tokenizer.json"
        try:
            return cls(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: no tokenizer; copy tokenizer.json of Qwen2.5 beside the weights") from error
        except Exception as error:  # the library raises bare Exception for malformed files
            raise CheckpointError(f"{path}: not a tokenizer file ({error})") from error

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return self._inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it stands: no special tokens are added, those in the text are recognised."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, special tokens left out."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True).strip()
