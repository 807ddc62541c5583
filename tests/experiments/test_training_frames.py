"""What must be true of the bank of frames that the vision half is trained on."""

import numpy as np
import pytest

from experiments.nano import training_frames
from experiments.synthetic import clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank") / "frames_0"
    training_frames.render(folder, 0, 1)
    return folder


def test_a_bank_holds_what_its_clips_show(folder):
    bank = training_frames.load(folder)
    groups = int(bank.starts[1])
    assert bank.pixels.shape == (groups, 4, 98, 98, 3) and bank.done == groups and 8 <= groups <= 16
    clip = training_frames.draw(0, 0, groups)
    for g, f in ((0, 0), (groups - 1, 3), (groups // 2, 1)):
        found = clips.boxes(clip, 4.0 * g + f)
        assert bank.names[g, f] == (-1 if found is None else found[0])
        if found is not None:
            np.testing.assert_allclose(bank.boxes[g, f], found[1:], rtol=1e-6)
    assert len({frame.tobytes() for frame in bank.pixels.reshape(-1, 98, 98, 3)}) > 2 * groups


def test_a_bank_of_other_clips_is_refused(folder, monkeypatch):
    drawn = training_frames.draw
    monkeypatch.setattr(training_frames, "draw", lambda split, index, groups: drawn(split, index + 1, groups))
    with pytest.raises(ValueError, match="run the stage `frames` again"):
        training_frames.load(folder)


def test_patches_are_labelled_by_what_covers_their_centre():
    names = np.array([7, -1])
    boxes = np.array([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]])
    cells = training_frames.covered(names, boxes, 4, 60)
    np.testing.assert_array_equal(cells[0], np.tile([7, 7, 60, 60], (4, 1)))
    assert (cells[1] == 60).all()
