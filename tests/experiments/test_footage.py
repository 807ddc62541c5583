"""What must be true of real backgrounds: the same for a seed, apart between the sets, moving, shipped with credits."""

import hashlib

import numpy as np
import pytest

from experiments.nano import frames
from experiments.synthetic import backgrounds, footage


@pytest.mark.parametrize("which", footage.SETS)
def test_a_seed_always_shows_the_same_and_another_seed_something_else(which):
    one = backgrounds.draw(3, 7.0, 98, which)
    assert one.shape == (98, 98, 3) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, backgrounds.draw(3, 7.0, 98, which))
    one[:] = 0  # what is returned belongs to the caller
    assert backgrounds.draw(3, 7.0, 98, which).any()
    assert (backgrounds.draw(3, 7.0, 98, which) != backgrounds.draw(4, 7.0, 98, which)).mean() > 0.5


def test_the_sets_share_no_film():
    kinds = {which: footage.paths(which) for which in footage.SETS}
    assert all(films and stills for films, stills in kinds.values())
    content = {
        which: {hashlib.sha256(path.read_bytes()).digest() for paths in both for path in paths}
        for which, both in kinds.items()
    }
    assert not content["train"] & content["test"]
    names = {which: {path.name for paths in both for path in paths} for which, both in kinds.items()}
    assert not names["train"] & names["test"]


def test_views_choose_from_all_of_their_set_and_only_from_it():
    for which in footage.SETS:
        films, stills = footage.paths(which)
        chosen = [footage.view(seed, which).path for seed in range(800)]
        assert set(chosen) <= {*films, *stills} and {*films} <= set(chosen)
        assert 0.4 < np.mean([path.suffix == ".mp4" for path in chosen]) < 0.6


def test_test_footage_keeps_its_colours():
    seed = next(s for s in range(99) if footage.view(s, "test").path.stem == "peaks")
    shown = footage.draw(seed, 0.0, 196, "test")
    (frame,), _ = footage.film(footage.view(seed, "test").path)
    assert footage.view(seed, "test").colour is None
    assert shown.min() >= frame.min() and shown.max() <= frame.max()
    assert all(footage.view(s, "test").colour is None for s in range(50))
    changed = [footage.view(s, "train").colour is not None for s in range(200)]
    assert 0.6 < np.mean(changed) < 0.8


def test_films_play_at_their_own_speed_and_start_again(monkeypatch):
    seed = next(s for s in range(99) if footage.view(s, "test").path.stem == "bunny")
    frames, rate = footage.film(footage.view(seed, "test").path)
    assert rate == 5 and len(frames) == pytest.approx(5.2 * rate, abs=2)
    length = len(frames) / rate
    still = footage.view(seed, "test")._replace(speed=(0.0, 0.0))
    monkeypatch.setattr(footage, "view", lambda *_: still)
    now, soon, later = (footage.draw(seed, t, 64, "test").astype(int) for t in (0.05, 1.05, 0.05 + 20 * length))
    assert abs(now - soon).mean() > 1
    np.testing.assert_array_equal(now, later)


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="'train', 'test'"):
        backgrounds.draw(0, 0.0, 64, "both")


def test_checks_are_made_on_test_footage_and_training_on_the_other():
    training, checking = (
        {scene.footage for i in range(20) for scene in frames.draw(split, i, 8).scenes} for split in (0, 1)
    )
    assert checking == {"test"} and training == {"", "train"}


def test_every_shipped_file_is_credited():
    folder = footage.paths("test")[0][0].parent.parent
    credits = (folder / "CREDITS.md").read_text()
    shipped = [path.name for which in footage.SETS for path in (folder / which).iterdir()]
    assert all(f"`{name}`" in credits for name in shipped)
    assert (
        sum(
            (folder / which / name).stat().st_size
            for which in footage.SETS
            for name in shipped
            if (folder / which / name).is_file()
        )
        < 1_500_000
    )
