"""Rotary position embeddings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxl2_jax.models.rope import MAX_POSITIONS, rotate, rotation


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_angles_are_exact_at_every_length(theta):
    positions = [0, 1, 1023, 1024, 9_999, 385_000, 1_048_575, 1_048_576, 1_049_600, 7_654_321, MAX_POSITIONS]
    positions = np.asarray([*positions, *(-at for at in positions)], np.int32)
    cos, sin = rotation(positions, 128, theta)
    angle = positions[:, None].astype(np.float64) * theta ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(cos, np.cos(angle), atol=4e-7)
    np.testing.assert_allclose(sin, np.sin(angle), atol=4e-7)


def test_no_bit_depends_on_spans_below_the_first():
    """Two parts are enough there: what was computed before there were spans."""
    positions = np.random.default_rng(0).integers(-(2**20) + 1, 2**20, 4096).astype(np.int32)
    frequency = 1e6 ** (-np.arange(0, 64, 2) / 64)

    def parts(of, step):
        return np.cos(of[:, None] * step * frequency).astype(np.float32), np.sin(of[:, None] * step * frequency).astype(
            np.float32
        )

    (cos_h, sin_h), (cos_l, sin_l) = parts(positions // 1024, 1024), parts(positions % 1024, 1)
    cos, sin = rotation(positions, 64, 1e6)
    np.testing.assert_array_equal(cos, cos_h * cos_l - sin_h * sin_l)
    np.testing.assert_array_equal(sin, sin_h * cos_l + cos_h * sin_l)


@given(st.integers(-400_000, 400_000), st.integers(-400_000, 400_000))
def test_rotations_compose(first, second):
    x = np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32)

    def rotate_by(x, position):
        return rotate(x, *rotation(np.asarray([position], np.int32), 16, 1e6))

    np.testing.assert_allclose(rotate_by(rotate_by(x, first), second), rotate_by(x, first + second), atol=3e-6)


def test_rotation_pairs_the_halves():
    """Entry i is rotated with entry i + D/2, by position · θ^(−2i / D)."""
    x = np.asarray([[1.0, 0.0, 0.0, 0.0]], np.float32)
    (got,) = rotate(x, *rotation(np.asarray([2], np.int32), 4, 1e4))
    np.testing.assert_allclose(got, [np.cos(2), 0, np.sin(2), 0], atol=1e-6)
