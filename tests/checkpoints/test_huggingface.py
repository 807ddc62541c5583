"""Loading a Hugging Face directory, complete or broken."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vxl2_jax import files
from vxl2_jax.checkpoints import assemble, huggingface, key_mapping
from vxl2_jax.errors import CheckpointError


@pytest.fixture
def copy(golden, tmp_path):
    return shutil.copytree(golden / "tiny_checkpoint", tmp_path / "checkpoint")


def rewrite(directory, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def refusal(directory) -> str:
    with pytest.raises(CheckpointError) as caught:
        huggingface.load(directory, "float32")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_configuration_is_read_from_the_files(golden):
    config, params = huggingface.load(golden / "tiny_checkpoint", "float32")
    assert (config.vision.layers, config.vision.grid, config.resized_grid, config.visual_tokens) == (2, 27, 24, 144)
    assert (config.language.heads, config.language.kv_heads, config.language.vocabulary) == (4, 2, 512)
    assert config.visual_placeholder == 504
    expected = huggingface.abstract_params(config)
    jax.tree.map(lambda a, b: a.shape == b.shape or pytest.fail(f"{a.shape} {b.shape}"), params, expected)


def test_every_weight_is_loaded_once_and_unchanged(golden):
    config, params = huggingface.load(golden / "tiny_checkpoint", "float32")
    tensors = load_file(golden / "tiny_checkpoint" / "model.safetensors")
    used = []
    for mapping in key_mapping.key_mappings(config):
        leaf = mapping.leaf(params)
        for number, key in enumerate(mapping.original_keys()):
            ours = np.asarray(leaf if mapping.layers is None else leaf[number])
            np.testing.assert_array_equal(mapping.transform.to_original(ours), tensors[key])
            used.append(key)
    unused = set(tensors) - set(used)
    assert len(used) == len(set(used)) and all(any(part in key for part in key_mapping.IGNORED) for key in unused)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_cast(golden, dtype):
    _, params = huggingface.load(golden / "tiny_checkpoint", dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_large_leaves_are_built_on_the_device_as_small_ones_on_the_host(copy, monkeypatch, dtype):
    def bits(params):
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]

    on_host = bits(huggingface.load(copy, dtype)[1])
    monkeypatch.setattr(assemble, "SMALL", 0)
    assert bits(huggingface.load(copy, dtype)[1]) == on_host


@pytest.mark.parametrize("small", [2**26, 0])
def test_a_weight_that_is_not_finite_in_the_dtype_is_named(copy, monkeypatch, small):
    monkeypatch.setattr(assemble, "SMALL", small)
    key = "model.layers.1.mlp.up_proj.weight"
    rewrite(copy, lambda tensors: tensors[key].__setitem__((0, 0), 1e6))
    assert huggingface.load(copy, "bfloat16")
    with pytest.raises(CheckpointError, match=f"{key}: has NaN or infinite values as float16"):
        huggingface.load(copy, "float16")


def test_shards_give_the_same_as_one_file(golden, copy):
    tensors = load_file(copy / "model.safetensors")
    parts = {
        "model-00001-of-00002.safetensors": sorted(tensors)[::2],
        "model-00002-of-00002.safetensors": sorted(tensors)[1::2],
    }
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, copy / name)
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    want, got = (huggingface.load(path, "float32") for path in (golden / "tiny_checkpoint", copy))
    assert got[0] == want[0]
    jax.tree.map(np.testing.assert_array_equal, got[1], want[1])
    (copy / "model-00002-of-00002.safetensors").unlink()
    assert "shard model-00002-of-00002.safetensors is missing" in refusal(copy)


def test_unused_tensors_may_be_absent(copy):
    def drop(tensors):
        for key in [key for key in tensors if any(part in key for part in key_mapping.IGNORED)]:
            del tensors[key]

    rewrite(copy, drop)
    huggingface.load(copy, "float32")


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.1.mlp.up_proj.weight",
        "model.sae.temporal_encoding",
        "lm_head.weight",
        "model.sae.encoder.1.relative_position_k.embeddings_table",
        "model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight",
        "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
    ],
)
def test_a_missing_tensor_is_named(copy, key):
    rewrite(copy, lambda tensors: tensors.pop(key))
    message = refusal(copy)
    assert key in message


def test_an_unexpected_tensor_is_named(copy):
    rewrite(copy, lambda tensors: tensors.update({"model.resampler.weight": np.zeros(3, np.float32)}))
    assert "1 unexpected (model.resampler.weight)" in refusal(copy)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(copy):
    key = "model.mm_projector.2.weight"
    rewrite(copy, lambda tensors: tensors.update({key: np.zeros((3, 64), np.float32)}))
    assert f"1 mis-shaped ({key} (3, 64) instead of (64, 64))" in refusal(copy)


@pytest.mark.parametrize("field", ["num_hidden_layers", "vocab_size", "intermediate_size"])
def test_a_config_that_does_not_match_the_weights_is_refused(copy, field):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {field: config[field] + 1}))
    assert "does not fit" in refusal(copy)
    config.pop(field)
    (copy / "config.json").write_text(json.dumps(config))
    assert field in refusal(copy)


@pytest.mark.parametrize(
    "damage", ["no config", "config no json", "config no object", "no weights", "cut", "empty", "no directory"]
)
def test_broken_directories_are_refused(copy, damage):
    weights = copy / "model.safetensors"
    if damage == "no config":
        (copy / "config.json").unlink()
    elif damage.startswith("config"):
        (copy / "config.json").write_text("{" if damage == "config no json" else "[]")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no directory":
        shutil.rmtree(copy)
    else:
        weights.write_bytes(weights.read_bytes()[:5000] if damage == "cut" else b"")
    assert str(copy) in refusal(copy)


def test_a_model_that_cannot_be_written_is_an_os_error(golden, tmp_path, monkeypatch):
    config, params = huggingface.load(golden / "tiny_checkpoint", "float32")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OSError):
        huggingface.save(tmp_path, config, params, "float32")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match="GB are free"):
        huggingface.save(tmp_path, config, params, "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
