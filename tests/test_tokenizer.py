"""A tokenizer from vocab.json and merges.txt is the one that a tokenizer.json would describe."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from vxl2_jax.errors import CheckpointError
from vxl2_jax.text import qwen2_bpe
from vxl2_jax.text.tokenizer import Tokenizer

TEXT = "It's 12:34 in the film, isn't it?\n\n  A dog — un café; 犬は走る。 time 4.0s: <|im_end|> WE'LL see\r\n\tx "


@pytest.fixture(scope="module")
def trained():
    """Byte-level BPE trained on a few words, with Qwen2.5's way of splitting text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(qwen2_bpe._SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


@pytest.fixture
def directory(trained, tmp_path):
    trained.model.save(str(tmp_path))
    size = trained.get_vocab_size()
    added = {
        size: {"content": "<|im_start|>", "special": True},
        size + 1: {"content": "<|im_end|>", "special": True},
        size + 2: {"content": "<tool_call>", "special": False},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return tmp_path


def test_ids_are_those_of_the_tokenizer_json(trained, directory):
    whole = tokenizers.Tokenizer.from_str(trained.to_str())
    whole.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    whole.add_tokens(["<tool_call>"])
    built = Tokenizer.read(directory)
    assert built.vocabulary == whole.get_vocab_size()
    ids = built.encode(TEXT)
    assert ids == whole.encode(TEXT, add_special_tokens=False).ids and len(ids) < len(TEXT)
    assert built.decode(built.encode("a café")) == "a café"
    assert built.encode("12") == [whole.token_to_id("1"), whole.token_to_id("2")], "digits stay apart"


def test_added_tokens_may_be_in_a_file_of_their_own(directory):
    expected = Tokenizer.read(directory).encode(TEXT)
    config = json.loads((directory / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    (directory / "added_tokens.json").write_text(
        json.dumps({token["content"]: int(at) for at, token in config.items()})
    )
    (directory / "tokenizer_config.json").unlink()
    assert Tokenizer.read(directory).encode(TEXT) == expected


@pytest.mark.parametrize(
    "name, content",
    [
        ("merges.txt", None),
        ("merges.txt", "a b c\n"),
        ("merges.txt", "not there\n"),
        ("vocab.json", "[]"),
        ("vocab.json", '{"a": "b"}'),
        ("vocab.json", '{"a": -1}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9999": {"content": "<x>"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": 5}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {}}'),  # without the tokens of turns
        ("tokenizer.json", "{}"),
    ],
)
def test_malformed_files_are_refused_in_one_line(directory, name, content):
    (directory / name).unlink(missing_ok=True)
    if content is not None:
        (directory / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.read(directory)
    assert "\n" not in str(caught.value)
