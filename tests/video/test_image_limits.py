"""Images of odd sizes: refused from their header, before they are decoded."""

import numpy as np
import pytest
from PIL import Image

from vxl2_jax.errors import VideoError
from vxl2_jax.video import images
from vxl2_jax.video.reader import open_video


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (40_000, 600), (9_000, 8_000)])
def test_images_beyond_the_limits_are_refused(tmp_path, size):
    Image.new("1", size).save(tmp_path / "a.png")
    with pytest.raises(VideoError, match="pixels") as caught:
        open_video(tmp_path / "a.png", size=28)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 100), (4_000, 40), (3_000, 2_000)])
def test_long_and_large_images_are_read(tmp_path, size):
    Image.new("RGB", size, (200, 10, 10)).save(tmp_path / "a.png")
    (batch,) = open_video(tmp_path / "a.png", size=28).batches(1)
    assert batch.shape == (1, 28, 28, 3) and tuple(batch[0, 14, 14]) != (127, 127, 127)


def test_the_file_is_closed(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    import os

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert images.is_image(tmp_path / "a.png")
        images.read_image(tmp_path / "a.png")
    assert len(os.listdir("/proc/self/fd")) == before
