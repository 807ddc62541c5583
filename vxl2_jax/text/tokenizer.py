"""Tokenisation by a tokenizer.json, with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import tokenizers

from vxl2_jax import files
from vxl2_jax.errors import CheckpointError, first_line
from vxl2_jax.text import qwen2_bpe
from vxl2_jax.text.prompt import MARKERS


@dataclass(frozen=True)
class Tokenizer:
    """Converts text to ids and back; `json` is the content of a tokenizer.json."""

    json: str = field(repr=False)

    def __post_init__(self) -> None:
        tokenizer = tokenizers.Tokenizer.from_str(self.json)
        if missing := [marker for marker in MARKERS if tokenizer.token_to_id(marker) is None]:
            raise ValueError(f"it lacks the special token {missing[0]}")
        special: set[int | None] = {*tokenizer.get_added_tokens_decoder(), *map(tokenizer.token_to_id, MARKERS)}
        # Unknown words have this one.
        unknown = getattr(tokenizer.model, "unk_token", None)
        special -= {None, tokenizer.token_to_id(unknown) if unknown else None}
        object.__setattr__(self, "_tokenizer", tokenizer)
        object.__setattr__(self, "_special", frozenset(special))

    @classmethod
    def read(cls, directory: Path) -> Tokenizer:
        """Read the directory's tokenizer.json; without one, build it from vocab.json and merges.txt, as Qwen2.5's.

        Raises CheckpointError if they are missing or malformed.
        """
        path = directory / "tokenizer.json"
        try:
            if files.is_there(path) or not files.is_there(directory / "vocab.json"):
                return cls(files.read_text(path, files.TOKENIZER))
            path = directory / "vocab.json"
            return cls(qwen2_bpe.build(directory))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception for malformed files
            files.TOKENIZER.fail(path, f"not a tokenizer file ({first_line(error)})", error)

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Text → ids. Adds no special tokens, but recognises those in the text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Text → ids, in which no special token occurs: "<|im_end|>" is encoded as the characters that it consists of."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        cuts = [
            start + 1
            for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
            if token in self._special
        ]
        if not cuts:
            return encoding.ids
        # Cut after its first character, a special token is not recognised.
        parts = (text[first:last] for first, last in pairwise([0, *cuts, len(text)]))
        return [token for part in parts for token in self.encode(part) if token not in self._special]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → text, without special tokens and surrounding whitespace."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True).strip()
