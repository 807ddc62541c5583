"""Films of odd timestamps, streams, containers and rates, and broken ones: what is on screen at each instant is read."""

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clips import number_of
from oddities import CASES, REFUSED, Case

from vxl2_jax.errors import VideoError
from vxl2_jax.video import open_video

for module in ("odd_times", "odd_streams", "odd_files"):  # which add their cases
    importlib.import_module(module)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Path]:
    """Makes the film of a case, once."""
    paths: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in paths:
            paths[name] = CASES[name].make(tmp_path_factory.mktemp("film"))
        return paths[name]

    return make


def open_case(path: Path, case: Case):
    return open_video(path, size=64, fps=case.fps, max_frames=case.limit)


@pytest.mark.parametrize("name", CASES)
def test_the_pictures_on_screen_are_read(made, name):
    case = CASES[name]
    source = open_case(made(name), case)
    frames = np.concatenate(list(source.batches(16)))
    assert [number_of(np.rot90(frame, -case.turn)) for frame in frames] == list(case.shown)
    instants = [k / case.fps for k in range(len(case.shown))] if case.seconds is None else case.seconds
    np.testing.assert_allclose(source.seconds, instants, atol=0.051)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.notes is not None])
def test_what_is_missing_is_reported(made, name):
    notes = open_case(made(name), CASES[name]).notes
    assert bool(notes) == CASES[name].notes, notes
    assert all(note and "\n" not in note for note in notes)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(VideoError) as caught:
        open_video(REFUSED[name](tmp_path), size=64)
    assert "\n" not in str(caught.value)
