"""config.json and the other JSON files of a checkpoint: every value is bounded, applied or refused, never ignored."""

import json

import pytest

from vxl2_jax.checkpoints import config_files, huggingface, native
from vxl2_jax.checkpoints.shards import INDEX, Shards
from vxl2_jax.errors import CheckpointError

ODD = ("x", [], {}, 1.5, 0, -1, 10**9, 10**20, True, float("nan"))
NUMBERS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
)


@pytest.fixture(scope="module")
def shards(golden):
    return Shards(golden / "tiny_checkpoint")


@pytest.fixture
def read(golden, tmp_path, shards):
    """The configuration of the small checkpoint, with fields of its JSON files changed."""
    contents = {
        name: json.loads((golden / "tiny_checkpoint" / f"{name}.json").read_text())
        for name in ("config", "vision_config", "special_tokens")
    }

    def read(name="config", **changes):
        for other, content in contents.items():
            content = content | (changes if other == name else {})
            (tmp_path / f"{other}.json").write_text(json.dumps(content))
        config = config_files.read_config(tmp_path, shards)
        huggingface.check_tensors(config, shards)
        return config

    return read


def refused(read, *args, **changes):
    with pytest.raises(CheckpointError) as caught:
        read(*args, **changes)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 1000
    return message


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("field", NUMBERS)
def test_odd_sizes_are_refused_at_once(read, field, value):
    assert field in refused(read, **{field: value}) or value in (10**9, 1.5)


@pytest.mark.parametrize("field", ["rope_theta", "rms_norm_eps"])
@pytest.mark.parametrize("value", ["x", [], -1, float("nan"), float("inf"), 1e300], ids=repr)
def test_odd_numbers_are_refused(read, field, value):
    assert field in refused(read, **{field: value})


@pytest.mark.parametrize(
    "extra",
    [
        "ab",
        {"evil": 1},
        {"stop_tokens": 5},
        {"stop_tokens": [-1]},
        {"stop_tokens": [512]},
        {"visual_placeholder": 10**9},
    ]
    + [
        {name: value}
        for name in ("resized_grid", "norm_groups", "max_relative", "pool")
        for value in (0, -1, "x", 10**9)
    ],
    ids=str,
)
def test_odd_extra_fields_are_refused(read, extra):
    refused(read, vxl2=extra)


@pytest.mark.parametrize("value", [0, -5, "x", 10**9, 300])
@pytest.mark.parametrize("field", ["image_size", "num_attention_heads", "layer_norm_eps"])
def test_odd_vision_fields_are_refused(read, field, value):
    if (field, value) != ("layer_norm_eps", 0):
        refused(read, "vision_config", **{field: value})


@pytest.mark.parametrize("name", ["config", "vision_config", "special_tokens"])
def test_a_name_that_is_no_unicode_text_is_refused(read, name):
    refused(read, name, **{"\ude5f": None})


@pytest.mark.parametrize("value", [-4, "x", 10**12])
def test_odd_special_tokens_are_refused(read, value):
    refused(read, "special_tokens", visual_tokens_per_group=value)


def test_both_forms_of_rope_theta_are_the_same(read):
    old = read(rope_theta=1e4)
    new = read(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    assert old == new and old.language.rope_theta == 1e4 and old != read()


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": {"factor": 2.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},  # rope_theta is 1e6 in the same file
        {"rope_theta": None},
        {"use_sliding_window": True},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"hidden_act": "gelu"},
        {"partial_rotary_factor": 0.5},
        {"quantization_config": {"bits": 4}},
        {"mm_vision_select_layer": -1},
        {"mm_vision_select_feature": "cls_patch"},
        {"mm_projector_type": "linear"},
        {"mm_resampler_type": "perceiver"},
        {"mm_spatial_pool_mode": "max"},
        {"mm_patch_merge_type": "spatial_unpad"},
        {"mm_use_im_start_end": True},
        {"mm_newline_position": "grid"},
        {"mm_spatial_pool_stride": 0},
        {"mm_spatial_pool_stride": 2, "vxl2": {"pool": 1}},
    ],
    ids=str,
)
def test_what_changes_the_computation_is_refused(read, change):
    refused(read, **change)


def test_the_stride_of_pooling_is_applied(read):
    configs = [read(mm_spatial_pool_stride=stride) for stride in (1, 2, 3, None)]
    assert [config.pool for config in configs] == [1, 2, 3, 2]
    assert {config.visual_tokens for config in configs} == {144}  # of special_tokens.json


@pytest.mark.parametrize(
    "change", [{"sliding_window": 4096}, {"rope_scaling": {"type": "default"}}, {"layer_types": ["full_attention"] * 3}]
)
def test_what_does_not_change_it_is_accepted(read, change):
    assert read(**change) == read()


@pytest.mark.parametrize(
    "content",
    ["5", "null", "[]", "{}", '{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": 5}}', '{"\\ude5f": 1}'],
)
def test_an_odd_index_is_refused(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    if content == "{}":
        (tmp_path / INDEX).write_text('{"metadata": {}}')
    refused(Shards, tmp_path)


@pytest.mark.parametrize("name", ["../weights.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", "weights.bin"])
def test_an_index_names_files_of_its_directory_only(tmp_path, name):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert "not the name" in refused(Shards, directory)


@pytest.mark.parametrize("content", ["null", "{}", "5", '{"vision": 5}', '{"language": {"heads": 0}}', '{"evil": 1'])
def test_an_odd_native_configuration_is_refused(tmp_path, content):
    (tmp_path / "vxl2.json").write_text(content)
    refused(native.load, tmp_path)


@pytest.mark.parametrize("shape", [(), (0,), (16,), (0, 3, 14, 14), (8, 3, 0, 0), (1, 1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize(
    "part", ["patch_embedding", "position_embedding", "layers.0.mlp.fc1.weight", "relative_position_k"]
)
def test_a_tensor_of_other_dimensions_is_refused(golden, shards, monkeypatch, part, shape):
    usual = shards.shape
    monkeypatch.setattr(shards, "shape", lambda key: shape if part in key else usual(key))
    with pytest.raises(CheckpointError, match="instead of . dimensions"):
        config_files.read_config(golden / "tiny_checkpoint", shards)
