"""What must be true of films with needles and of what is said about them."""

import itertools
import json
import re

import av
import numpy as np
import pytest

from experiments.synthetic import clips, encode, film_video, films, questions
from experiments.synthetic.__main__ import main

SIZE, RATE = 48, 2


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two clips without pictures: 3 seconds and a bit, and 2 seconds, of other backgrounds."""
    folder = tmp_path_factory.mktemp("sources")
    files = folder / "one.mp4", folder / "two.mp4"
    for seed, (file, seconds) in enumerate(zip(files, (3.5, 2.0), strict=True)):
        encode.render_mp4(clips.Clip(seconds, (), (clips.Scene(0.0, seed),)), file, size=SIZE, rate=RATE)
    return files


def make(folder, *flags, seconds=90, seed=3, needles=2):
    """(frames [F, SIZE, SIZE, 3] as integers, answers) of a film."""
    video, answers = folder / "long.mp4", folder / "long.json"
    given = ["--seconds", seconds, "--needles", needles, "--seed", seed, "--size", SIZE, "--rate", RATE, *flags]
    main(["film", *(str(flag) for flag in (*given, "--out", video, "--answers", answers))])
    with av.open(str(video)) as container:
        decoded = list(container.decode(video=0))
    np.testing.assert_allclose([frame.time for frame in decoded], np.arange(len(decoded)) / RATE)
    return np.stack([f.to_ndarray(format="rgb24") for f in decoded]).astype(int), json.loads(answers.read_text())


@pytest.fixture(scope="module")
def film(sources, tmp_path_factory):
    return make(tmp_path_factory.mktemp("film"), "--loop", *sources)


def test_frames_last_as_long_as_asked(film):
    frames, answers = film
    assert len(frames) == 90 * RATE and answers["seconds"] == 90


def test_sources_follow_each_other_in_a_loop(film, sources):
    frames, answers = film
    assert answers["loop_s"] == 3 + 2
    shown = []
    for file, seconds in zip(sources, (3, 2), strict=True):
        with av.open(str(file)) as container:
            shown += [f.to_ndarray(format="rgb24") for f in container.decode(video=0)][: seconds * RATE]
    for at in (0, 5, 85):
        assert abs(frames[at * RATE : at * RATE + len(shown)] - np.stack(shown)).mean() < 8
    np.testing.assert_array_equal(frames[: 5 * RATE], frames[5 * RATE : 10 * RATE])


def test_a_needle_is_seen_in_its_seconds_and_not_a_frame_before_or_after(film):
    frames, answers = film
    loop = answers["loop_s"] * RATE
    bare = np.resize(np.arange(loop), len(frames))
    changed = (abs(frames - frames[bare]).max(-1) > 40).mean((1, 2)) > 0.02
    wanted = np.zeros(len(frames), bool)
    for event in answers["events"]:
        wanted[int(event["start_s"] * RATE) : int(event["stop_s"] * RATE)] = True
    np.testing.assert_array_equal(changed, wanted)


def test_the_needle_looks_like_its_picture(sources):
    film = films.draw_film(np.random.default_rng(3), seconds=90, needles=2)
    second = next(film_video.from_files(sources[:1], SIZE, RATE))
    event = film.needles[0]
    laid = film_video.paste_needle(film, second, int(event.start_s))
    expected = clips.render_frame(clips.Clip(90.0, (event,), (clips.Scene(0.0, 0),)), event.start_s, SIZE)
    _, *box = clips.boxes(clips.Clip(90.0, (event,), ()), event.start_s)
    x, y = round((box[0] + box[2]) / 2 * SIZE), round((box[1] + box[3]) / 2 * SIZE)
    inside = np.s_[y - 4 : y + 4, x - 4 : x + 4]
    assert abs(laid[0][inside].astype(int) - expected[inside]).mean() < 8
    assert (laid[0] != second[0]).any() and (laid[0][inside] != second[0][inside]).any()


@pytest.mark.parametrize("seconds, needles", [(52, 1), (232, 10), (10_000, 10), (10_000, 60)])
def test_needles_keep_their_distance_their_length_and_their_names(seconds, needles):
    for seed in range(20):
        film = films.draw_film(np.random.default_rng(seed), seconds=seconds, needles=needles)
        spans = [(e.start_s, e.stop_s) for e in film.needles]
        assert all(8 <= stop - start <= 16 and start == int(start) for start, stop in spans)
        assert spans[0][0] >= 16 and spans[-1][1] <= seconds - 16
        assert all(b[0] - a[1] >= 4 for a, b in itertools.pairwise(spans))
        assert len({e.name for e in film.needles}) == needles
        part = (seconds - 32) / needles
        assert all(16 + i * part - 1 <= start <= 16 + (i + 1) * part for i, (start, _) in enumerate(spans))


def test_answers_are_those_of_the_needles(film):
    _, answers = film
    events = {event["name"]: event for event in answers["events"]}
    kinds = [question["type"] for question in answers["questions"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {"exists": 2, "when": 2, "what": 2, "first": 1}
    for question in answers["questions"]:
        event, said = events[question["needle"]], question["answer"]
        assert questions.is_right(question, said) and question["needle"] in f"{question['question']} {said}"
        if question["type"] == "when":
            assert question["start_s"] == event["start_s"]
        if question["type"] == "what":
            assert event["start_s"] <= int(re.search(r"\d+", question["question"])[0]) < event["stop_s"]


def test_the_seed_decides_and_nothing_else(film, sources, tmp_path):
    for seed, same in ((3, True), (4, False)):
        frames, answers = make(tmp_path, "--loop", *sources, seed=seed)
        assert np.array_equal(frames, film[0]) == same and (answers == film[1]) == same


def test_without_a_loop_backgrounds_are_generated(tmp_path, monkeypatch):
    monkeypatch.setattr(film_video, "SCENES", 2)
    monkeypatch.setattr(film_video, "SCENE_S", 4)
    frames, answers = make(tmp_path, seconds=60, needles=1)
    assert answers["loop_s"] == 8 and {path.name for path in tmp_path.iterdir()} == {"long.mp4", "long.json"}
    assert abs(frames[3 * RATE] - frames[4 * RATE]).mean() > 10  # another scene


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--seconds", "51"], "at least 52 seconds"),
        (["--seconds", "90", "--hours", "1"], "not allowed with"),
        (["--hours", "nan"], "hours"),
        (["--hours", "x"], "hours"),
        (["--needles", "61", "--seconds", "9000"], "to 60"),
        (["--seconds", "90", "--loop", "{}/broken.mp4"], "broken.mp4"),
        (["--seconds", "90", "--size", "49"], "even"),
        (["--seconds", "90", "--loop", "{}/a.mp4"], "different files"),
        (["--seconds", "90", "--out", "nowhere/a.mp4"], "no folder"),
        ([], "required"),
    ],
)
def test_bad_flags_end_with_one_line_and_write_nothing(flags, message, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_text("no video")
    flags = [flag.format(tmp_path) for flag in flags]
    written = ["--out", str(tmp_path / "a.mp4"), "--answers", str(tmp_path / "a.json")]
    with pytest.raises(SystemExit) as end:
        main(["film", "--seed", "1", "--needles", "1", *written, *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["broken.mp4"]
