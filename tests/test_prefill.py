"""Pre-filling by strides gives what one pass under the mask gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vxl2_jax import prefill
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.models import qwen2, video_xl_2


@pytest.mark.parametrize(
    "rule",
    [
        PrefillRule(2, 1),
        PrefillRule(3, 0),
        *(pytest.param(PrefillRule(*rule), marks=pytest.mark.slow) for rule in [(1, 2), (4, 11)]),
        PrefillRule(prev_blocks=None),
    ],
)
def test_strides_equal_one_pass_under_the_mask(toy, rule):
    clip = toys.video()
    want, caches = toys.whole_pass(toy, toys.embedded(toy, clip), toys.mask_of(clip, rule))
    streams, hidden = toys.prefilled(toy, clip, rule, stride=2, keep_hidden=True)
    np.testing.assert_allclose(hidden, want, atol=5e-5)
    positions = np.arange(clip.layout.length)
    for layer, (k, v) in enumerate(caches):
        keys = np.swapaxes(toys.natural(clip, streams.visual.k[layer], streams.global_.k[layer]), 0, 1)
        values = np.swapaxes(toys.natural(clip, streams.visual.v[layer], streams.global_.v[layer]), 0, 1)
        np.testing.assert_allclose(keys, toys.turned(k, positions, toy.config), atol=2e-5)
        np.testing.assert_allclose(values, v, atol=2e-5)


@pytest.mark.parametrize("stride", [3, 16, *(pytest.param(stride, marks=pytest.mark.slow) for stride in (1, 4))])
def test_the_stride_does_not_matter(toy, stride):
    clip = toys.video(1)
    one, _ = toys.prefilled(toy, clip, stride=2)
    other, _ = toys.prefilled(toy, clip, stride=stride)
    for a, b in zip(one, other, strict=True):
        for part in "kv":
            rows = [np.asarray(getattr(s, part)) for s in (a, b)]
            length = clip.layout.visual_length if a is one.visual else clip.layout.global_length
            np.testing.assert_allclose(rows[0][:, :, :length], rows[1][:, :, :length], atol=2e-5)


def test_keeping_the_residual_stream_leaves_the_cache_as_it_is(toy):
    clip = toys.video(2)
    plain, _ = toys.prefilled(toy, clip)
    kept, _ = toys.prefilled(toy, clip, keep_hidden=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), plain, kept)


@pytest.mark.parametrize(
    "dtype, error", [(jnp.bfloat16, 0.08), pytest.param(jnp.float16, 0.01, marks=pytest.mark.slow)]
)
def test_half_precision_stays_close(toy, dtype, error):
    clip = toys.video(3)
    exact, _ = toys.prefilled(toy, clip)
    cast = toys.Toy(toy.config, jax.tree.map(lambda a: a.astype(dtype), toy.params))
    rough, _ = toys.prefilled(cast, clip, dtype=dtype)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rough), strict=True):
        assert b.dtype == dtype
        difference = np.asarray(b, np.float32) - np.asarray(a)
        assert np.sqrt(np.mean(difference**2) / np.mean(np.asarray(a) ** 2)) < error


def arrays_of(jaxpr) -> list:
    """Every array of a jaxpr, those inside loops included."""
    found = []
    for equation in jaxpr.eqns:
        found += [v.aval for v in equation.outvars if hasattr(v.aval, "shape")]
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += arrays_of(inner)
    return found


def test_no_array_grows_with_the_square_of_the_length(toy):
    layout = Layout(5, (4,) * 3000, 4)
    sizes = prefill.shape_for(layout, 8)
    (stride, *_) = prefill.plan_strides(Layout(5, (4,) * 8, 4), toys.RULE, np.zeros(37, np.int32), sizes)
    streams = jax.eval_shape(lambda: prefill.empty(toy.config, sizes, jnp.float32))
    tokens = jnp.zeros((8, 4, toy.config.language.width))
    traced = jax.make_jaxpr(lambda s, t: prefill.run_stride(toy.params, toy.config, s, stride, t))(streams, tokens)
    caches = {leaf.shape for leaf in jax.tree.leaves(streams)}
    tables = 3 * 1024 * toy.config.language.head_width  # of the rotary angles
    largest = max(np.prod(a.shape) for a in arrays_of(traced.jaxpr) if a.shape not in caches)
    assert largest < max(tables, layout.length * 64) < layout.length**2 / 4


def test_activation_memory_does_not_grow_with_the_video(toy):
    def temporary(groups: int) -> int:
        sizes = prefill.shape_for(Layout(5, (4,) * groups, 4), 4)
        (stride, *_) = prefill.plan_strides(Layout(5, (4,) * 4, 4), toys.RULE, np.zeros(21, np.int32), sizes)
        streams = jax.eval_shape(lambda: prefill.empty(toy.config, sizes, jnp.float32))
        tokens = jax.ShapeDtypeStruct((4, 4, toy.config.language.width), jnp.float32)
        compiled = prefill.run_stride.lower(toy.params, toy.config, streams, stride, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(4096) < temporary(256) + 1024 * 1024


def test_real_sizes_trace():
    from vxl2_jax.config import video_xl_2 as real

    config = real()
    params = jax.eval_shape(lambda k: video_xl_2.init(k, config), jax.ShapeDtypeStruct((2,), jnp.uint32))
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), params)
    layout = Layout(14, (9,) * 2500, config.visual_tokens)
    sizes = prefill.shape_for(layout, 16)
    (stride, *_) = prefill.plan_strides(Layout(14, (9,) * 16, 144), PrefillRule(), np.zeros(14 + 144, np.int32), sizes)
    streams = jax.eval_shape(lambda: prefill.empty(config, sizes, jnp.bfloat16))
    tokens = jax.ShapeDtypeStruct((16, 144, config.language.width), jnp.bfloat16)
    out, hidden = jax.eval_shape(lambda p, s, t: prefill.run_stride(p, config, s, stride, t), params, streams, tokens)
    assert hidden is None and out == streams
    frames = jax.ShapeDtypeStruct((64, 384, 384, 3), jnp.uint8)
    encoded = jax.eval_shape(lambda p, f: video_xl_2.encode_frames(p, config, f), params, frames)
    assert encoded.shape == (16, 144, 3584)
    assert (
        jax.eval_shape(lambda p, x: qwen2.logits(p, config.language, x), params["language"], encoded).shape[-1]
        == 152064
    )
