"""Quantised weights against a plain statement of the rule in float64, and the networks with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vxl2_jax.checkpoints import assemble, huggingface
from vxl2_jax.models import quantised, qwen2, video_xl_2
from vxl2_jax.models.linear import Linear
from vxl2_jax.models.quantised import GROUP, INT4, INT8, SETTINGS, W8A8, WIDE, Scheme

quantise_all = jax.jit(quantised.quantise_params, static_argnames="setting")
NARROW = SETTINGS[1:]
COLUMNS, ROWS = Scheme(), Scheme(per_row=True)
GROUPS, TOKENS = Scheme(4, group=GROUP), Scheme(activations=True)
SHAPES = {COLUMNS: (40, 12), ROWS: (30, 16), GROUPS: (2 * GROUP + 10, 12), TOKENS: (40, 12)}


def abstract(params, setting):
    return jax.eval_shape(lambda: quantised.quantise_params(params, setting))


def weight_of(scheme, scale=1.0):
    return jnp.asarray(np.random.default_rng(3).normal(size=SHAPES[scheme]) * scale, jnp.float32)


def oracle(weight, scheme):
    """(integers, scales spread over the weight's shape), in float64."""
    weight = np.asarray(weight, np.float64)
    rows, largest = len(weight), 7 if scheme.bits == 4 else 127
    if scheme.per_row:
        peak = np.abs(weight).max(axis=1, keepdims=True)
    else:
        step = scheme.group or rows
        peaks = [np.abs(weight[begin : begin + step]).max(axis=0) for begin in range(0, rows, step)]
        peak = np.repeat(peaks, step, axis=0)[:rows]
    scale = np.broadcast_to(peak / largest, weight.shape)
    return np.rint(weight / scale), scale  # NumPy, too, rounds halves to even


@pytest.mark.parametrize("scheme", SHAPES)
def test_integers_and_scales_are_the_rules(scheme):
    weight = weight_of(scheme)
    found, (integers, scale) = quantised.quantise(weight, scheme), oracle(weight, scheme)
    assert found.values.dtype == (jnp.int4 if scheme.bits == 4 else jnp.int8) and found.scale.dtype == jnp.float32
    assert np.array_equal(np.asarray(found.values, np.float64), integers)
    np.testing.assert_allclose(quantised.dequantise(found, jnp.float32), integers * scale, rtol=1e-6)
    assert np.all(np.abs(np.asarray(weight) - integers * scale) <= scale * 0.5001)


def test_halves_are_rounded_to_even_and_zeros_stay_zeros():
    column = jnp.asarray([[127.0], [0.5], [1.5], [2.5], [-0.5], [-1.5]])
    assert quantised.quantise(column, COLUMNS).values[:, 0].tolist() == [127, 0, 2, 2, 0, -2]
    for scheme, shape in SHAPES.items():
        zeros = quantised.quantise(jnp.zeros(shape), scheme)
        assert not np.any(quantised.dequantise(zeros, jnp.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scheme", [COLUMNS, GROUPS, TOKENS])
def test_a_linear_layer_is_the_product_of_integers_and_scales(scheme, dtype):
    rng, rows = np.random.default_rng(5), SHAPES[scheme][0]
    x = jnp.asarray(rng.normal(size=(2, 3, rows)), dtype)
    bias = jnp.asarray(rng.normal(size=12), dtype)
    integers, scale = oracle(weight_of(scheme), scheme)
    inputs = np.asarray(x, np.float64)
    if scheme.activations:
        token = np.abs(inputs).max(axis=-1, keepdims=True) / 127
        inputs = np.rint(inputs / token) * token
    want = inputs @ (integers * scale) + np.asarray(bias, np.float64)
    params = {"kernel": quantised.quantise(weight_of(scheme), scheme), "bias": bias}
    found = Linear(12).apply({"params": params}, x)
    assert found.dtype == dtype
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}[dtype]
    np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def test_products_that_float16_cannot_hold_before_scaling_are_finite():
    x = jnp.full((1, 40), 100.0, jnp.float16)
    found = quantised.matmul(x, quantised.quantise(jnp.full((40, 12), 0.01), COLUMNS))
    np.testing.assert_allclose(found, 40.0, rtol=1e-3)


@pytest.mark.parametrize("columns", [4, 5, 12])
def test_a_head_in_slices_is_the_whole_head(columns, monkeypatch):
    x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 3, 40)), jnp.float32)
    weight = quantised.quantise(weight_of(COLUMNS), COLUMNS)
    want = quantised.matmul(x, weight)
    monkeypatch.setattr(quantised, "_COLUMNS", columns)
    np.testing.assert_allclose(quantised.head(x, weight), want, rtol=1e-5, atol=1e-5)


def test_an_embedding_table_gives_rows_and_as_a_head_columns():
    table = quantised.quantise(weight_of(ROWS), ROWS)
    wide = np.asarray(quantised.dequantise(table, jnp.float32))
    assert np.array_equal(quantised.take(table, jnp.asarray([[3, 0]]), jnp.float32), wide[[[3, 0]]])
    assert np.array_equal(quantised.dequantise(quantised.transposed(table), jnp.float32), wide.T)


@pytest.mark.parametrize("setting", NARROW)
def test_what_is_quantised_and_what_stays_wide(toy, setting):
    params = abstract(toy.params, setting)
    leaves = dict(jax.tree_util.tree_leaves_with_path(params, is_leaf=quantised.is_quantised))
    wide = {jax.tree_util.keystr(path): leaf for path, leaf in leaves.items() if not quantised.is_quantised(leaf)}
    for name, leaf in wide.items():
        assert leaf.dtype == jnp.float32, name
        assert any(part in name for part in ("norm", "bias", "relative", "temporal_encoding", "position")), name
    kinds = {jax.tree_util.keystr(path): leaf for path, leaf in leaves.items() if quantised.is_quantised(leaf)}
    four = {name for name, leaf in kinds.items() if leaf.values.dtype == jnp.int4}
    eight = {name for name in kinds if "embed" in name or "head" in name or "halve" in name}
    assert four == (kinds.keys() - eight if setting == INT4 else set()) and len(eight) == 4
    assert quantised.setting_of(params) == setting and quantised.setting_of(toy.params) == WIDE


def test_w8a8_quantises_activations_of_gate_and_up_and_of_the_vision_half(toy):
    wide = [f"language.layers.{name}.kernel" for name in ("down", "key", "out", "query", "value")]
    wide = ["dts.halve_0.kernel", "dts.halve_1.kernel", "language.embed", "language.head", *wide]
    params, int8 = abstract(toy.params, W8A8), abstract(toy.params, INT8)
    assert quantised.wide_inputs(params) == wide
    narrow = set(quantised.wide_inputs(int8)) - set(wide)
    assert {name for name in narrow if name.startswith("language")} == {
        "language.layers.gate.kernel",
        "language.layers.up.kernel",
    }
    assert {name.partition(".")[0] for name in narrow} == {"language", "vision", "dts", "projector"}


def test_an_outlier_leaves_other_channels_as_they_are_where_activations_are_wide(toy):
    """Beside 1,000, one scale per token rounds numbers below 4 to zero."""
    layers = quantise_all(toy.params, setting=W8A8)["language"]["layers"]
    error = {}
    for name in ("down", "key", "gate"):
        kernel = jax.tree.map(lambda a: a[0], layers[name]["kernel"])
        wide = np.asarray(quantised.dequantise(kernel, jnp.float32), np.float64)
        x = np.random.default_rng(7).normal(size=(1, len(wide))).astype(np.float32)
        x[0, 5] = 1000.0
        found = np.asarray(quantised.matmul(jnp.asarray(x), kernel), np.float64)
        others = np.delete(x, 5, axis=1) @ np.delete(wide, 5, axis=0)
        error[name] = np.linalg.norm(found - 1000 * wide[5] - others) / np.linalg.norm(others)
    assert error["down"] < 1e-3 and error["key"] < 1e-3 and error["gate"] > 0.5


def test_bytes_count_two_4_bit_numbers_as_one(toy):
    assert quantised.bytes_of({"a": jax.ShapeDtypeStruct((3, 5), jnp.int4), "b": jnp.zeros(3)}) == 8 + 12
    sizes = [quantised.bytes_of(abstract(toy.params, setting)) for setting in (WIDE, INT8, INT4)]
    assert sizes == sorted(sizes, reverse=True)
    kernel = quantised.quantise(weight_of(GROUPS), GROUPS)
    assert quantised.bytes_of(kernel) == 138 * 12 // 2 + 4 * 3 * 12


@pytest.fixture(scope="module")
def inputs(toy):
    rng, lm = np.random.default_rng(1), toy.config.language
    return rng.integers(0, 256, (4, 28, 28, 3)).astype(np.uint8), rng.integers(0, lm.vocabulary, 6)


def outputs(params, config, frames, ids):
    """Visual tokens, and logits of a language model that attends to nothing but itself."""
    x = qwen2.embed(params["language"], config.language, jnp.asarray(ids))

    def attend(q, k, v, state, layer):
        return q + jnp.repeat(v, q.shape[1] // v.shape[1], axis=1), state

    x, _ = qwen2.run_layers(params["language"], config.language, x, attend)
    return video_xl_2.encode_frames(params, config, frames), qwen2.logits(params["language"], config.language, x)


@pytest.mark.parametrize("setting", NARROW)
def test_scanned_layers_compute_as_with_the_dequantised_weights(toy, inputs, setting):
    """Activations in 8 bits differ by their own rounding; everything else only in the order of products."""
    params = quantise_all(toy.params, setting=setting)
    wide = jax.tree.map(
        lambda leaf: quantised.dequantise(leaf, jnp.float32) if quantised.is_quantised(leaf) else leaf,
        params,
        is_leaf=quantised.is_quantised,
    )
    for found, want in zip(outputs(params, toy.config, *inputs), outputs(wide, toy.config, *inputs), strict=True):
        error = np.linalg.norm(found - want) / np.linalg.norm(want)
        assert error < (0.1 if setting == W8A8 else 1e-5)
        assert (error > 1e-4) == (setting == W8A8)


def test_other_weights_need_no_other_program(toy):
    traces = []

    @jax.jit
    def logits(params, x):
        traces.append(None)
        return qwen2.logits(params["language"], toy.config.language, x)

    x = jnp.ones((1, toy.config.language.width))
    for scale in (1.0, 2.0):
        changed = jax.tree.map(lambda leaf, scale=scale: scale * leaf, toy.params)
        logits(quantise_all(changed, setting=INT8), x)
    assert len(traces) == 1


# The largest error of a tensor, relative to its norm. Measured on the whole checkpoint: 0.0082 (a convolution of DTS; linear
# layers 0.0077) and 0.110.
BOUNDS = {INT8: 0.01, INT4: 0.13}


@pytest.mark.parametrize("setting", BOUNDS)
def test_a_checkpoint_in_parts_is_quantised_as_a_whole_one(golden, setting, monkeypatch):
    directory = golden / "tiny_checkpoint"
    _, wide = huggingface.load(directory, "float32")
    monkeypatch.setattr(assemble, "PART", 1000)
    config, found = huggingface.load(directory, "bfloat16", weights=setting)
    expected = huggingface.abstract_params(config, "bfloat16", setting)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    want = quantise_all(wide, setting=setting)

    def compare(path, leaf, want, wide):
        if quantised.is_quantised(leaf):
            assert np.array_equal(leaf.values, want.values) and np.array_equal(leaf.scale, want.scale), path
            error = np.linalg.norm(quantised.dequantise(leaf, jnp.float32) - wide) / np.linalg.norm(wide)
            eight = leaf.values.dtype == jnp.int8
            assert error < BOUNDS[INT8 if eight else INT4], (path, error)

    jax.tree_util.tree_map_with_path(compare, found, want, wide, is_leaf=quantised.is_quantised)


def test_embeddings_have_the_dtype_of_norms(toy):
    params = quantise_all(toy.params, setting=INT8)["language"]
    assert qwen2.dtype_of(params) == jnp.float32
    assert qwen2.embed(params, toy.config.language, jnp.asarray([1])).dtype == jnp.float32
