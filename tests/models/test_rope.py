"""Rotary position embeddings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxl2_jax.models.rope import rotate, rotation


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_angles_are_exact_at_every_length(theta):
    positions = np.asarray([0, 1, 1023, 1024, 9_999, 385_000, 1_048_575, -1, -385_000, -1_048_576], np.int32)
    cos, sin = rotation(positions, 128, theta)
    angle = positions[:, None].astype(np.float64) * theta ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(cos, np.cos(angle), atol=3e-7)
    np.testing.assert_allclose(sin, np.sin(angle), atol=3e-7)


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
