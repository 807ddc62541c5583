"""What must be true of the questions about a clip, of their answers, and of the words they are made of."""

import itertools
import re

import numpy as np
import pytest

from experiments.synthetic import blind_guesses, clips, pictures, questions, vocabulary
from experiments.synthetic.questions import Question
from vxl2_jax.text import prompt

NAMES, _ = pictures.load()


def asked(seconds: int, seed: int = 0, count: int = 14) -> tuple[clips.Clip, list[Question]]:
    rng = np.random.default_rng((seed, seconds))
    clip = clips.draw_clip(rng, seconds=seconds, names=NAMES)
    return clip, questions.questions(rng, clip, count)


def many(*seconds: int):
    drawn = (asked(length, seed) for length in seconds for seed in range(40))
    return [(clip, question) for clip, found in drawn for question in found]


@pytest.fixture(scope="module")
def drawn():
    return many(64, 200)


def shown_in_order(clip: clips.Clip) -> list[str]:
    """Names as they come and go, seen once a second."""
    seen = [event.name if (event := clip.at(t)) else None for t in np.arange(0, clip.seconds, 0.5)]
    return [name for name, _ in itertools.groupby(seen) if name]


def test_every_type_is_asked(drawn):
    assert {q.type for _, q in drawn} == set(questions.TYPES)


def test_a_true_answer_is_right(drawn):
    assert all(questions.is_right(q, q.answer) for _, q in drawn)


def test_answers_follow_from_what_is_shown(drawn):
    for clip, q in drawn:
        order, words = shown_in_order(clip), re.findall(r"[a-z]+", q.question.lower())
        named = [word for word in words if word in NAMES]
        if q.type == "count":
            assert q.answer == ("once", "twice", "three times")[order.count(named[0]) - 1]
        if q.type in ("between", "order"):
            assert all(order.count(name) == 1 for name in named)
            first, last = (order.index(name) for name in named)
            run = order[first : last + 1]
            said = [word for word in re.findall("[a-z]+", q.answer) if word in NAMES]
            assert said == (run[1:-1] if q.type == "between" else run)
            assert len(run) == 3 if q.type == "between" else 3 <= len(run) <= 5


def test_evidence_covers_what_the_answer_rests_on(drawn):
    for clip, q in drawn:
        names = {event.name for event in clip.events if (event.start_s, event.stop_s) in q.evidence}
        said = set(re.findall("[a-z]+", f"{q.question} {q.answer}".lower())) & set(NAMES)
        if q.type == "exists" and q.answer == "no":
            assert q.evidence == ()
        else:
            assert said == names and all(0 <= start < stop <= clip.seconds for start, stop in q.evidence)
        if q.type == "count":
            assert len(q.evidence) == sum(event.name in said for event in clip.events)


@pytest.mark.parametrize(
    "kind, answer, response, right",
    [
        ("count", "twice", "Twice.", True),
        ("count", "twice", "once", False),
        ("count", "twice", "once or twice", False),
        ("count", "three times", "three times", True),
        ("count", "three times", "times", False),
        ("between", "an owl", "An owl!", True),
        ("between", "an owl", "a dog, an owl, a car", False),
        ("between", "an owl", "", False),
        ("order", "a dog, an owl, a car", "a dog, an owl, a car", True),
        ("order", "a dog, an owl, a car", "Dog, owl and car.", True),
        ("order", "a dog, an owl, a car", "a dog, a car, an owl", False),
        ("order", "a dog, an owl, a car", "a dog, an owl", False),
        ("order", "a dog, an owl, a car", "a dog, an owl, a car, a cat", False),
        ("order", "a dog, an owl, a car", "a dog, an owl, an owl, a car", False),
    ],
)
def test_is_right(kind, answer, response, right):
    assert questions.is_right(Question("?", answer, kind, 0.1), response) == right


def test_long_clips_repeat_names_but_never_in_a_row():
    for seed in range(30):
        events = asked(512, seed)[0].events
        assert all(a.name != b.name for a, b in itertools.pairwise(events))
    times = [q.answer for _, q in many(200, 256) if q.type == "count"]
    shares = [times.count(answer) / len(times) for answer in questions.TIMES]
    assert min(shares) > 0.2 and max(shares) < 0.5


@pytest.mark.parametrize("seconds, which", [((32, 64), 0), ((128, 256), 1)])
def test_blind_guesses_do_as_stated(seconds, which):
    levels = blind_guesses.chance_levels(0, 800, seconds)
    for kind in questions.TYPES:
        close = {"when": 0.03, "what": 0.02, "between": 0.03, "order": 0.02}.get(kind, 0.06)
        assert levels[kind] == pytest.approx(questions.CHANCES[kind][which], abs=close), kind


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="between"):
        questions.ask(np.random.default_rng(0), asked(64)[0], "why")


@pytest.mark.parametrize("second", [0, 4, 12, 100, 1020])
def test_a_timestamp_at_a_whole_second_is_one_token(second):
    (token,) = vocabulary.encode(prompt.timestamp_text(second))
    assert vocabulary.words()[token] == str(second)
    assert token in vocabulary.encode(prompt.suffix_text(f"What appears at {second} seconds?"))


@pytest.mark.parametrize("second, pieces", [(12.5, "12 . 5 s:"), (0.3, "0 . 3 s:")])
def test_other_timestamps_are_several_tokens(second, pieces):
    assert [vocabulary.words()[token] for token in vocabulary.encode(prompt.timestamp_text(second))] == pieces.split()


def test_words_about_time_stay(drawn):
    said = [vocabulary.words()[token] for token in vocabulary.encode("What time is it? The time 12 comes first.")]
    assert said == ["what", "time", "is", "it", "?", "the", "time", "12", "comes", "first", "."]


def test_questions_and_answers_have_no_unknown_words(drawn):
    unknown = vocabulary.words().index("<unk>")
    assert all(unknown not in vocabulary.encode(prompt.suffix_text(q.question) + q.answer) for _, q in drawn)
