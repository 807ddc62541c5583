"""What must be true of generated clips and of the answers about them."""

import itertools
import json
import re

import av
import numpy as np
import pytest

from experiments.synthetic import clips, encode, pictures, questions, vocabulary
from experiments.synthetic.__main__ import main

NAMES, _ = pictures.load()


def clip_of(seed: int, seconds: int = 48) -> clips.Clip:
    return clips.draw_clip(np.random.default_rng(seed), seconds=seconds, names=NAMES)


def seen(clip: clips.Clip) -> list[str | None]:
    """The name visible at every whole second, as a sampler of one frame per second sees it."""
    found = (clips.boxes(clip, s) for s in range(int(clip.seconds)))
    return [None if box is None else NAMES[box[0]] for box in found]


def test_pictures_are_60_named_and_visible():
    names, rgba = pictures.load()
    assert len(set(names)) == 60 and rgba.shape == (60, 96, 96, 4) and rgba.dtype == np.uint8
    assert all(re.fullmatch("[a-z]+", name) for name in names)
    assert (rgba[..., 3] > 128).mean(axis=(1, 2)).min() > 0.15


@pytest.mark.parametrize("seconds", [8, 9, 13, 17, 32, 48, 64, 200, 512])
def test_events_keep_their_distance_and_their_length(seconds):
    for seed in range(25):
        events = clip_of(seed, seconds).events
        assert events and events[0].start_s >= 0 and events[-1].stop_s <= seconds
        assert all(b.start_s - a.stop_s > 1.35 for a, b in itertools.pairwise(events))
        assert all(7.99 < e.stop_s - e.start_s < 16.01 for e in events)


def test_a_clip_too_short_for_any_picture_is_refused():
    with pytest.raises(ValueError, match="at least 8"):
        clip_of(0, 7)


def test_pictures_fill_most_of_the_time_and_names_sometimes_return():
    drawn = [clip_of(seed) for seed in range(400)]
    filled = [sum(e.stop_s - e.start_s for e in c.events) / c.seconds for c in drawn]
    assert min(filled) > 0.58 and max(filled) <= 0.75
    repeats = np.mean([len({e.name for e in c.events}) < len(c.events) for c in drawn])
    assert 0.3 < repeats < 0.6
    assert 0.1 < np.mean([c.events[0].start_s == 0 for c in drawn]) < 0.4


def test_the_picture_stays_inside_the_frame():
    for seed in range(40):
        clip = clip_of(seed)
        for t in np.arange(0, clip.seconds, 0.5):
            box = clips.boxes(clip, t)
            if box is not None:
                assert min(box[1:]) > -1e-6 and max(box[1:]) < 1 + 1e-6
                assert 0.359 < max(box[3] - box[1], box[4] - box[2]) < 0.601


def test_the_same_seed_gives_the_same_frames_and_another_seed_others():
    one, same, other = clip_of(5), clip_of(5), clip_of(6)
    assert one == same and one != other
    frames = clips.render_frames(one, [0, 3.5, 20], 98)
    assert frames.shape == (3, 98, 98, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, clips.render_frames(same, [0, 3.5, 20], 98))
    np.testing.assert_array_equal(frames[1], clips.render_frame(one, 3.5, 98))
    assert (frames != clips.render_frames(other, [0, 3.5, 20], 98)).mean() > 0.5


def test_the_picture_is_drawn_in_its_box_and_nowhere_else():
    clip = clip_of(1)
    bare = clips.Clip(clip.seconds, (), clip.scenes)
    event = clip.events[0]
    for t in (event.start_s, event.stop_s - 0.1):
        changed = (clips.render_frame(clip, t) != clips.render_frame(bare, t)).any(-1)
        rows, columns = np.nonzero(changed)
        _, *box = clips.boxes(clip, t)
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        np.testing.assert_allclose(np.array(edges) / 196, box, atol=0.02)
    np.testing.assert_array_equal(clips.render_frame(clip, event.stop_s), clips.render_frame(bare, event.stop_s))


def test_backgrounds_move():
    clip = clips.Clip(8.0, (), clip_of(2).scenes)
    frames = clips.render_frames(clip, [0, 1, 2], 64).astype(int)
    assert (abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)) > 1).all()


@pytest.mark.parametrize("offset", [0, 7])
def test_answers_follow_from_what_is_seen_each_second(offset):
    rng = np.random.default_rng(offset)
    for seed in range(60):
        clip = clip_of(seed, int(rng.integers(32, 65)))
        names = seen(clip)
        for q in questions.questions(rng, clip, 8, ("exists", "first", "when", "what"), offset_s=offset):
            words = re.findall(r"\w+", q.question)
            if q.type == "exists":
                assert q.answer == ("yes" if words[-1] in names else "no")
            elif q.type == "first":
                pair = sorted((words[-1], words[-4]), key=names.index)
                assert q.answer == f"the {pair[0]}" and pair[0] != pair[1]
            elif q.type == "when":
                group = names.index(words[3]) // 4 * 4
                assert q.answer == f"at {group + offset} seconds"
            else:
                t = int(words[-2]) - offset
                assert q.answer.split()[1] == names[t] == names[t - 1]
            assert questions.is_right(q, q.answer)


def test_every_word_is_in_the_vocabulary():
    known = set(vocabulary.words())
    rng = np.random.default_rng(0)
    for seed in range(50):
        for q in questions.questions(rng, clip_of(seed), 8):
            assert set(re.findall("[a-z]+", f"{q.question} {q.answer}".lower())) <= known


def test_a_type_the_clip_does_not_allow_is_replaced():
    clip = clip_of(0, 8)  # one picture: nothing to compare
    kinds = {q.type for q in questions.questions(np.random.default_rng(0), clip, 8)}
    assert kinds == {"exists", "when", "what"}


@pytest.mark.parametrize(
    "fields, response, right",
    [
        (("exists", "yes", None), "Yes, there is.", True),
        (("exists", "yes", None), "no", False),
        (("exists", "no", None), "", False),
        (("first", "the dog", None), "Dog.", True),
        (("first", "the dog", None), "the dog, then the cat", False),
        (("first", "the dog", None), "the cat", False),
        (("what", "an apple", None), "It is an APPLE!", True),
        (("what", "an apple", None), "a pineapple", False),
        (("what", "an apple", None), "something", False),
        (("when", "at 20 seconds", 21.2), "at 25 seconds", True),
        (("when", "at 20 seconds", 21.2), "17", False),
        (("when", "at 20 seconds", 21.2), "At 17.5 s.", True),
        (("when", "at 20 seconds", 21.2), "late", False),
    ],
)
def test_is_right(fields, response, right):
    kind, answer, start = fields
    assert questions.is_right(questions.Question("?", answer, kind, 0.5, start), response) == right
    assert questions.is_right({"answer": answer, "type": kind, "start_s": start}, response) == right


def test_the_same_clip_makes_the_same_file(tmp_path):
    for name in ("a", "b"):
        encode.render_mp4(clip_of(3, 12), tmp_path / f"{name}.mp4", size=196, rate=8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_render_mp4_has_the_right_length_and_looks_like_the_frames(tmp_path):
    clip = clip_of(3, 10)
    encode.render_mp4(clip, tmp_path / "a.mp4", size=98, rate=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert float(container.duration) / av.time_base == pytest.approx(10, abs=0.1)
    assert len(frames) == 80 and frames[0].shape == (98, 98, 3)
    truth = clips.render_frame(clip, 5.0, 98).astype(int)
    assert abs(frames[40] - truth).mean() < 12
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_the_first_type_goes_round_with_the_seed(tmp_path):
    for seed in range(len(questions.TYPES)):
        video, answers = tmp_path / f"{seed}.mp4", tmp_path / f"{seed}.json"
        small = ["--size", "32", "--rate", "1"]
        main(["clip", "--seed", str(seed), "--out", str(video), "--answers", str(answers), *small])
        written = json.loads(answers.read_text())
        kinds, wanted = [q["type"] for q in written["questions"]], questions.TYPES[seed]
        assert (
            kinds[0] == wanted or wanted not in kinds and wanted in ("between", "order")
        )  # not every clip allows those
        assert video.is_file() and 32 <= written["seconds"] <= 64 and len(written["events"]) >= 2
        assert all(("start_s" in q) == (q["type"] == "when") for q in written["questions"])


@pytest.mark.parametrize(
    "flags", [["--size", "97"], ["--seconds", "7"], ["--rate", "x"], ["--out", "nowhere/a.mp4"], ["--colour", "red"]]
)
def test_bad_flags_end_with_one_line(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["clip", "--seed", "1", "--out", str(tmp_path / "a.mp4"), "--answers", str(tmp_path / "a.json"), *flags])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
