from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vxl2_jax.models.siglip import normalise
from vxl2_jax.video.preprocess import pad_to_square, resize_frame, resize_padded

RNG = np.random.default_rng(7)


def test_resizing_is_pillows_bicubic():
    rgb = RNG.integers(0, 256, (90, 125, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(rgb).resize((48, 48), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize_frame(rgb, 48), expected)
    assert resize_frame(rgb[:, ::-1], 48).dtype == np.uint8  # not contiguous


def test_pixels_are_the_originals():
    # One frame through the reference image processor at 384 x 384; the golden pixels are channels-first.
    golden = np.load(Path(__file__).parents[1] / "data" / "preprocess.npz")
    pixels = np.asarray(normalise(np.stack([resize_frame(frame, 384) for frame in golden["raw"]]))).transpose(
        0, 3, 1, 2
    )
    np.testing.assert_allclose(pixels[:, :, ::16, ::16], golden["pixels_every_16th"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(pixels[:, :, 100:132, 200:232], golden["pixels_crop"], rtol=0, atol=1e-6)


def test_an_already_square_frame_is_left_alone():
    rgb = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_frame(rgb, 32), rgb)


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (5, 5), (1, 2)])
def test_padding_centres_the_image_on_grey(height, width):
    rgb = RNG.integers(0, 100, (height, width, 3), dtype=np.uint8)
    square = pad_to_square(rgb)
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    assert square.shape == (side, side, 3)
    np.testing.assert_array_equal(square[top : top + height, left : left + width], rgb)
    assert (square == 127).all(-1).sum() == side * side - height * width


def test_normalised_pixels_run_from_minus_one_to_one():
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    pixels = np.asarray(normalise(frames))
    assert pixels.dtype == np.float32 and pixels.shape == frames.shape
    np.testing.assert_allclose(pixels, (frames / 255.0 - 0.5) / 0.5, atol=1e-6)
    assert (pixels.min(), pixels.max()) == (-1, 1)


@pytest.mark.parametrize("height, width", [(1, 1), (3, 700), (700, 3), (300, 301), (41, 40), (28, 20), (520, 260)])
def test_padding_in_strips_is_padding_and_resizing(height, width):
    rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(resize_padded(rgb, 28), resize_frame(pad_to_square(rgb), 28))
