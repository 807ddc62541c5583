"""Frames → visual tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vxl2_jax.models import dts, video_xl_2
from vxl2_jax.models.projector import Projector

encode_frames = jax.jit(video_xl_2.encode_frames, static_argnames=("config", "groups_at_once"))


def frames_of(toy, groups: int, seed: int = 0) -> np.ndarray:
    side = toy.config.vision.image_size
    return np.random.default_rng(seed).integers(0, 256, (4 * groups, side, side, 3)).astype(np.uint8)


def test_regrouping_reads_memory_as_the_original_does():
    """out[g, c, t] = in[4g + n // C, n mod C] with n = 4c + t."""
    maps = np.random.default_rng(0).normal(size=(8, 2, 3, 6)).astype(np.float32)
    out = np.asarray(dts.regroup(jnp.asarray(maps)))
    for g, c, t in np.ndindex(2, 6, 4):
        n = 4 * c + t
        np.testing.assert_array_equal(out[g, t, :, :, c], maps[4 * g + n // 6, :, :, n % 6])
    assert not np.array_equal(out, maps.reshape(2, 4, 2, 3, 6)), "it is not a plain grouping"


@pytest.mark.parametrize("source, target", [(27, 24), (7, 6), (5, 5), (4, 6)])
def test_resizing_interpolates_at_half_pixel_centres(source, target):
    y, x = np.mgrid[:source, :source]
    features = jnp.asarray(np.stack([y, x], -1).reshape(1, source**2, 2), jnp.float32)
    at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    expected = np.stack(np.meshgrid(at, at, indexing="ij"), -1)[None]
    np.testing.assert_allclose(dts.resize(features, source, target), expected, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_groups_are_independent(toy, at_once):
    frames = frames_of(toy, 3)
    whole = encode_frames(toy.params, toy.config, frames, 3)
    np.testing.assert_allclose(encode_frames(toy.params, toy.config, frames, at_once), whole, atol=2e-5)
    changed = frames.copy()
    changed[4:8] = 255 - changed[4:8]
    other = np.asarray(encode_frames(toy.params, toy.config, changed, 3))
    np.testing.assert_allclose(other[[0, 2]], np.asarray(whole)[[0, 2]], atol=2e-5)
    assert np.abs(other[1] - whole[1]).max() > 1e-2


def test_pooling_before_the_last_linear_equals_pooling_after(toy):
    maps = jax.random.normal(jax.random.key(0), (2, 4, 4, toy.config.vision.width))
    unpooled = np.asarray(video_xl_2.project(toy.params, toy.config, maps, 1)).reshape(2, 2, 2, 2, 2, -1)
    got = video_xl_2.project(toy.params, toy.config, maps)
    np.testing.assert_allclose(got, unpooled.mean(axis=(2, 4)).reshape(2, 4, -1), atol=1e-5)


def test_projector_rows_are_row_major():
    maps = jnp.arange(16.0).reshape(1, 4, 4, 1)
    eye = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    out = Projector(1).apply({"params": {"linear_in": eye, "linear_out": eye}}, maps + 10, 2)
    np.testing.assert_allclose(out[0, :, 0], [12.5, 14.5, 20.5, 22.5], atol=1e-5)


def test_temporal_downsampling_repeats_the_edges_and_is_causal(toy):
    """Step 0 of the output reads input steps 0 (repeated), 0 and 1; step 1 reads 1, 2 and 3."""
    params = {"params": toy.params["dts"]["halve_0"]}
    x = jax.random.normal(jax.random.key(0), (1, 4, 3, 3, toy.config.vision.width))

    def run(a):
        return np.asarray(dts.TemporalDownsample().apply(params, a))

    for step, read in enumerate([(0, 1), (1, 2, 3)]):
        for changed in range(4):
            differs = np.abs(run(x.at[0, changed].add(1.0))[0, step] - run(x)[0, step]).max() > 1e-4
            assert differs == (changed in read)
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    constant = jnp.broadcast_to(x[:, :1, :1, :1], x.shape)
    want = np.einsum("c,thwcd->d", x[0, 0, 0, 0], kernel) + bias
    np.testing.assert_allclose(run(constant), np.broadcast_to(want, run(constant).shape), atol=2e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_close(toy, dtype):
    frames = frames_of(toy, 1)
    exact = np.asarray(encode_frames(toy.params, toy.config, frames))
    cast = jax.tree.map(lambda a: a.astype(dtype), toy.params)
    rough = encode_frames(cast, toy.config, frames)
    assert rough.dtype == dtype
    error = np.asarray(rough, np.float32) - exact
    assert np.sqrt((error**2).mean() / (exact**2).mean()) < 0.1


def test_pixels_that_fill_no_patch_are_cut(toy):
    vision = dataclasses.replace(toy.config.vision, image_size=31)
    config = dataclasses.replace(toy.config, vision=vision)
    frames = np.random.default_rng(0).integers(0, 256, (4, 31, 31, 3)).astype(np.uint8)
    cut = np.ascontiguousarray(frames[:, :28, :28])
    np.testing.assert_allclose(
        encode_frames(toy.params, config, frames), encode_frames(toy.params, toy.config, cut), atol=1e-6
    )
