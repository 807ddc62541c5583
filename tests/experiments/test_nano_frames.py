"""What must be true of the bank of frames that nano's vision half is trained on."""

import numpy as np
import pytest

from experiments.nano import frames
from experiments.synthetic import clips
from vxl2_jax.errors import RequestError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank") / "frames_0"
    frames.open_bank(folder, 0, 1)
    return folder


def test_a_bank_holds_what_its_clips_show(folder):
    bank = frames.open_bank(folder, 0, 1)
    groups = int(bank.starts[1])
    assert bank.pixels.shape == (groups, 4, 98, 98, 3) and 8 <= groups <= 16
    clip = frames.draw(0, 0, groups)
    for g, f in ((0, 0), (groups - 1, 3), (groups // 2, 1)):
        found = clips.boxes(clip, 4.0 * g + f)
        assert bank.names[g, f] == (-1 if found is None else found[0])
        if found is not None:
            np.testing.assert_allclose(bank.boxes[g, f], found[1:], rtol=1e-6)
    assert len({frame.tobytes() for frame in bank.pixels.reshape(-1, 98, 98, 3)}) > 2 * groups


def test_another_bank_is_refused(folder):
    with pytest.raises(RequestError, match="choose another --out"):
        frames.open_bank(folder, 0, 2)


def test_parts_that_an_interrupted_call_left_out_are_written(tmp_path):
    shapes, written = {"numbers": (np.int32, (50,))}, []

    def fill(stop):
        def write(arrays, part):
            if part == stop:
                raise KeyboardInterrupt
            arrays["numbers"][part] = 7 * part
            written.append(part)

        return frames.fill(tmp_path / "bank", {"split": 0}, shapes, 50, write)

    with pytest.raises(KeyboardInterrupt):
        fill(stop=45)
    np.testing.assert_array_equal(fill(stop=None)["numbers"], 7 * np.arange(50))
    assert written == [*range(45), *range(40, 50)]  # the state is kept every 20 parts


def test_patches_are_labelled_by_what_covers_their_centre():
    names = np.array([7, -1])
    boxes = np.array([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]])
    cells = frames.covered(names, boxes, 4)
    np.testing.assert_array_equal(cells[0], np.tile([7, 7, 60, 60], (4, 1)))
    assert (cells[1] == frames.NOTHING).all()
