"""Wrong timestamps become the times at which a player shows the frames."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxl2_jax.video.timeline import timeline

A = np.arange(250) / 25
"""Ten seconds."""
B_FRAMES = np.concatenate([[0], *(np.array([4, 2, 1, 3]) + 4 * i for i in range(62))]) / 25
DAY = 93_600.0


def times_of(seconds, *, jumps=False, decoding_s=None):
    found = timeline(np.asarray(seconds, float), reorders=True, jumps=jumps, decoding_s=decoding_s)
    assert sorted(found.order) == list(range(len(seconds))) and np.all(np.diff(found.times) >= 0)
    return found


@given(st.lists(st.floats(0.001, 200), max_size=60), st.floats(-1e6, 1e6), st.booleans())
def test_times_that_never_go_back_are_left_as_they_are(steps, start, jumps):
    seconds = start + np.concatenate([[0.0], np.cumsum(steps)])
    found = times_of(seconds)
    assert found.order.tolist() == list(range(len(seconds)))
    np.testing.assert_array_equal(found.times, seconds - seconds[0])


@pytest.mark.parametrize("seconds", [A, B_FRAMES, A - 5, A * 3000])
def test_a_sound_film_has_no_notes(seconds):
    found = times_of(seconds)
    np.testing.assert_array_equal(found.times, np.sort(seconds) - seconds.min())
    assert found.notes == () and found.spacing == pytest.approx(np.median(np.diff(np.sort(seconds))))


@pytest.mark.parametrize("first", [A, A + 30, B_FRAMES, B_FRAMES + 30, A + 95_000])
def test_a_clock_that_starts_again_continues_after_the_last_frame(first):
    second = first - first.min()
    found = times_of(np.concatenate([first, second]))
    np.testing.assert_allclose(np.diff(found.times), 0.04)
    assert np.all(found.order[: len(first)] < len(first)) and len(found.notes) == 1


def test_decoding_times_show_a_restart_of_a_short_film():
    first = np.array([0.2, 0.5, 0.3, 0.4, 0.6, 0.7])
    found = times_of([*first, *first], decoding_s=np.array([-np.inf, *np.arange(5), *np.arange(6)]) / 10)
    np.testing.assert_allclose(found.times, np.arange(12) / 10)
    assert found.repaired and set(found.order[:6]) == set(range(6))
    assert times_of(first, decoding_s=np.array([0, 1, 9, 3, 4, 5]) / 10).notes == ()


@pytest.mark.parametrize("at", [0, 1, 2, 100, 246, 247, 248, 249])
@pytest.mark.parametrize("wrong", [DAY, -DAY, 2 * DAY])
def test_one_wrong_timestamp_is_replaced(at, wrong):
    seconds = A.copy()
    seconds[at] = wrong
    found = times_of(seconds)
    np.testing.assert_allclose(found.times, A, atol=1e-9)
    assert found.order.tolist() == list(range(250)) and len(found.notes) == 1


def test_a_wrong_timestamp_among_reordered_frames_moves_no_other():
    seconds = B_FRAMES.copy()
    seconds[101] = DAY
    found = times_of(seconds)
    others = found.order[found.order != 101]
    np.testing.assert_array_equal(others, np.delete(np.argsort(B_FRAMES), np.flatnonzero(np.argsort(B_FRAMES) == 101)))
    assert found.times[-1] == pytest.approx(B_FRAMES.max())


def test_a_jump_is_closed_where_clocks_jump_and_is_a_still_picture_elsewhere():
    for film in (A, B_FRAMES):
        seconds = np.concatenate([film, film + 3600])
        closed, kept = times_of(seconds, jumps=True), times_of(seconds)
        np.testing.assert_allclose(np.diff(closed.times), 0.04)
        np.testing.assert_array_equal(kept.times, np.sort(seconds))
        assert "3,590" in closed.notes[0] and "3,590" in kept.notes[0]


def test_still_pictures_and_slides_stay_as_long_as_they_are_shown():
    for pictures in ([*A, 600], [0, *(600 + A)], [*A, 100, 200, 300, *(400 + A)], np.arange(50) * 60.0):
        np.testing.assert_array_equal(times_of(pictures).times, pictures)


def test_one_frame_and_equal_times_are_films_too():
    assert times_of([7.0]).times.tolist() == [0.0] and times_of([2.0] * 5).times.tolist() == [0.0] * 5


def test_outliers_are_replaced_however_near_they_lie():
    for film in (A, B_FRAMES):
        for late in (5, -5, 30, -30, DAY):
            seconds = film + 40
            seconds[100:102] += late
            decoding_s = np.arange(len(film)) / 25
            decoding_s[100:102] += late
            found = times_of(seconds, jumps=True, decoding_s=decoding_s)
            np.testing.assert_allclose(found.times, np.sort(film), atol=0.13)
            assert found.notes == ("2 wrong timestamps were replaced",)


def test_an_outlier_beside_a_restart_of_the_clock_is_one_frame():
    for film in (A, B_FRAMES):
        for beside in (-1, 0, 1, 2, 3):
            seconds = np.concatenate([film + 100, film + 70])
            seconds[len(film) + beside] += DAY
            found = times_of(seconds, jumps=True)
            assert found.times[-1] == pytest.approx((2 * len(film) - 1) / 25, abs=0.09) and len(found.notes) == 2
            assert set(found.order[: len(film) - 1]) < set(range(len(film) + 1))


def test_a_few_frames_before_a_still_picture_keep_their_times():
    for first in ([0], [0, 0.04], [0, 0.04, 0.08], [0, 0.04, 0.08, 0.12]):
        for still_s in (3, 20, 3000):
            seconds = np.concatenate([first, still_s + A])
            np.testing.assert_array_equal(times_of(seconds).times, seconds)
