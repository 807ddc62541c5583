"""Qwen2.5's tokenizer from vocab.json and merges.txt, for checkpoints without a tokenizer.json."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vxl2_jax import files

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Added(msgspec.Struct, frozen=True):
    content: str
    special: bool = False
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class _TokenizerConfig(msgspec.Struct, frozen=True):
    """tokenizer_config.json."""

    added_tokens_decoder: dict[str, _Added] = {}


def build(directory: Path) -> str:
    """The content of the tokenizer.json that the other files describe.

    Reads vocab.json, merges.txt, and the added tokens in tokenizer_config.json or added_tokens.json, if present.
    Raises CheckpointError for a missing file, and other exceptions (the library's own) for malformed ones.
    """
    vocabulary = msgspec.convert(_read_json(directory / "vocab.json"), dict[str, int])
    lines = [line for _, line in files.text_lines(files.read_text(directory / "merges.txt", files.TOKENIZER))]
    pairs = msgspec.convert(
        [line.rstrip("\r").split(" ") for line in lines if not line.startswith("#version")], list[tuple[str, str]]
    )
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for number, added in sorted(_added_tokens(directory).items()):
        fields = msgspec.structs.asdict(added)
        tokenizer.add_tokens([AddedToken(**fields)])
        if tokenizer.token_to_id(added.content) != number:
            files.TOKENIZER.fail(directory, f"the added token {added.content!r:.60} cannot have the id {number}")
    return tokenizer.to_str()


def _added_tokens(directory: Path) -> dict[int, _Added]:
    config = directory / "tokenizer_config.json"
    if files.is_there(config) and (found := msgspec.convert(_read_json(config), _TokenizerConfig).added_tokens_decoder):
        return {int(number): added for number, added in found.items()}
    added = directory / "added_tokens.json"
    if not files.is_there(added):
        return {}
    numbers = msgspec.convert(_read_json(added), dict[str, int])
    return {number: _Added(content, special=True) for content, number in numbers.items()}


def _read_json(path: Path) -> dict:
    return files.read_json_object(path, files.TOKENIZER)
