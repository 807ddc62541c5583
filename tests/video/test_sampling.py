import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxl2_jax.errors import VideoError
from vxl2_jax.video.sampling import frame_seconds, is_slower, sample_indices, sample_timestamps

# The original's loader on these inputs ("multiple_of_4" is its evaluation without chunks).
CASES = json.loads((Path(__file__).parents[1] / "data" / "sampling.json").read_text())

options = st.fixed_dictionaries(
    {
        "fps": st.floats(0.1, 30),
        "max_frames": st.none() | st.integers(1, 500),
        "max_fps": st.none() | st.floats(0.1, 30),
        "multiple_of_4": st.booleans(),
    }
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['total_frames']}@{c['native_fps']}-{c['multiple_of_4']}")
def test_frames_and_timestamps_are_the_originals(case):
    keys = ("total_frames", "native_fps", "fps", "max_frames", "max_fps", "multiple_of_4")
    indices = sample_indices(**{key: case[key] for key in keys})
    assert (len(indices), indices.sum()) == (case["num"], case["sum"])
    assert indices[:12].tolist() == case["head"] and indices[-12:].tolist() == case["tail"]
    seconds = frame_seconds(indices, case["native_fps"])
    assert seconds[::4][:8].tolist() == case["group_seconds"]
    assert seconds[-1] == case["last_second"]


@given(st.integers(1, 5000), st.floats(0.01, 240), options)
def test_any_video_gives_at_least_one_frame_and_at_most_the_limit(total, rate, kw):
    indices = sample_indices(total, rate, **kw)
    assert indices.dtype == np.int64 and len(indices) >= 1
    assert indices[0] == 0 and indices[-1] < total and np.all(np.diff(indices) > 0)
    assert kw["max_frames"] is None or len(indices) <= kw["max_frames"]
    assert not kw["multiple_of_4"] or len(indices) < 4 or len(indices) % 4 == 0


def test_without_a_limit_the_rate_is_never_raised():
    assert len(sample_indices(300, 30.0)) == 10
    assert len(sample_indices(300, 30.0, max_frames=256)) == 38


@pytest.mark.parametrize(("total", "rate"), [(7, 1.0), (10, 30.0), (1, 25.0), (3, 0.2)])
def test_where_the_original_fails_all_frames_are_kept(total, rate):
    assert 1 <= len(sample_indices(total, rate, max_frames=16, multiple_of_4=True)) <= total


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=200), options)
def test_each_instant_takes_the_frame_on_screen(gaps, kw):
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    end = float(times[-1]) + 0.04
    indices, seconds = sample_timestamps(times, end, **kw)
    assert len(indices) == len(seconds) >= 1 and seconds[0] == 0 and np.all(seconds <= end + 0.05)
    assert kw["max_frames"] is None or len(indices) <= kw["max_frames"]
    tolerance = 0.05 + 1e-5 * max(1, end)  # the instants are rounded to tenths
    for index, second in zip(indices, seconds, strict=True):
        assert times[index] <= second + tolerance
        assert index == len(gaps) or times[index + 1] > second - tolerance


@given(st.floats(1, 500), st.floats(0.2, 10))
def test_there_is_one_frame_for_each_instant_of_the_option(end, fps):
    indices, seconds = sample_timestamps(np.array([0.0, 0.5]), end, fps=fps)
    assert abs(len(seconds) - end * fps) <= 1 and (indices[seconds > 0.6] == 1).all()
    np.testing.assert_allclose(seconds, np.arange(len(seconds)) / fps, atol=0.0501)


def test_a_slow_start_and_a_fast_end_are_sampled_by_time():
    times = np.concatenate([np.arange(40) / 4, 10 + np.arange(300) / 30])  # 10 s at 4, then 10 s at 30 per second
    indices, seconds = sample_timestamps(times, 20.0, fps=1)
    assert seconds.tolist() == list(range(20)) and (indices < 40).sum() == (indices >= 40).sum()


def test_the_limit_thins_by_time_and_raises_the_rate_to_that_of_the_frames():
    times = np.array([0.0, 0.5, 1.0, 1.5, 60.0, 60.5, 61.0])  # a still picture for a minute
    assert len(sample_timestamps(times, 61.5, fps=1)[0]) == 62
    assert len(sample_timestamps(times, 61.5, fps=1, max_frames=500)[0]) == 123  # at most 2 per second are there
    assert sample_timestamps(times, 61.5, fps=1, max_frames=3)[1].tolist() == [0.0, 30.5, 61.0]
    with pytest.raises(VideoError, match="max_frames"):
        sample_timestamps(times, 1e7, fps=1)


def test_a_film_is_slow_if_the_originals_step_would_be_zero():
    assert is_slower(0.5, 1) and not is_slower(0.51, 1) and is_slower(1, 4)


@pytest.mark.parametrize("bad", [{"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"max_frames": 0}, {"max_fps": 0}])
def test_invalid_options_are_named(bad):
    (name,) = bad
    for call in (lambda: sample_indices(10, 25.0, **bad), lambda: sample_timestamps(np.arange(3.0), 3.0, **bad)):
        with pytest.raises(VideoError, match=name) as caught:
            call()
        assert "\n" not in str(caught.value)
