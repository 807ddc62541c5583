"""What nano says that it knows is what it was trained on; answers about anything else are marked."""

import json
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import toys

from experiments.nano import recipe
from experiments.synthetic import clips, pictures
from experiments.synthetic.questions import questions
from vxl2_jax import Answer, CheckpointError, ToyModelWarning, VideoMemory, prefill, scope, toy
from vxl2_jax.checkpoints.fetch import NANO
from vxl2_jax.runtime import Runtime

KNOWN = scope.read(NANO)


def test_nano_knows_what_its_recipe_trains():
    assert recipe.trained_on() == KNOWN
    assert f"{len(pictures.load()[0])} pictures" in KNOWN.summary


@pytest.mark.parametrize("seed", range(4))
def test_every_generated_question_is_known(seed):
    rng = np.random.default_rng(seed)
    clip = clips.draw_clip(rng, seconds=200, names=pictures.load()[0])
    assert all(KNOWN.knows(one.question) for one in questions(rng, clip, 21))


@pytest.mark.parametrize(
    "text",
    [
        "Who opens the door?",
        "Is there a cat?" if "cat" not in KNOWN.names else "Is there a lion?",
        "Is there a dog? Answer yes or no.",
        "What appears at 1024 seconds?",
        "What appears at the end?",
        "Is there dog?",
    ],
)
def test_other_questions_are_not(text):
    assert not KNOWN.knows(text)


def test_case_spaces_and_clock_times_do_not_matter():
    assert KNOWN.knows(" is there  a DOG? ") and KNOWN.knows("What appears at 1:05?")


def test_every_reason_to_doubt_is_named():
    asked = "Is there a dog?"
    assert KNOWN.doubts(asked, generated=True, seconds=512) == ()
    for changed in ({"generated": False}, {"seconds": 513}, {"follows": True}):
        assert len(KNOWN.doubts(asked, **({"generated": True, "seconds": 9} | changed))) == 1
    assert len(KNOWN.doubts("Who?", generated=False, seconds=9, follows=True)) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"forms": ["Is {it}?"]},
        {"forms": []},
        {"forms": ["{name} " * 9]},
        {"names": "dog"},
        {"names": []},
        {"names": ["dog", ""]},
        {"names": [f"dog {number}" for number in range(9000)]},
        {"seconds": None},
        {"max_second": -1},
        {"more": 1},
    ],
)
def test_a_malformed_scope_is_one_line(tmp_path, change):
    content = json.loads((NANO / scope.FILE).read_text()) | change
    (tmp_path / scope.FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as error:
        scope.read(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_directory_without_a_scope_holds_no_toy(tmp_path):
    assert scope.read(tmp_path) is None


def memory(generated: bool) -> VideoMemory:
    """A memory without content."""
    streams = prefill.empty(toys.CONFIG, prefill.shape_for(toys.LAYOUT, 2), jnp.float32)
    times = tuple(4.0 * group for group in range(toys.LAYOUT.groups))
    about = {"compression": 2, "seconds": times, "end_s": 28.0, "frames": 28, "rope_theta": 1e4}
    return VideoMemory(streams, streams.visual, toys.LAYOUT, toys.RULE, generated=generated, **about)


def answers(*texts: str) -> list[Answer]:
    return [Answer(text, "yes", (1,), True, (), 1, 1, {}) for text in texts]


def runtime(known: scope.Scope | None) -> Runtime:
    return Runtime("nano", toys.CONFIG, {}, None, "", scope=known)


def test_answers_of_a_toy_are_marked_in_one_warning():
    with pytest.warns(ToyModelWarning) as caught:
        marked = toy.with_doubts(runtime(KNOWN), memory(True), answers("Is there a dog?", "Who?", "Why?"))
    assert [bool(answer.doubts) for answer in marked] == [False, True, True]
    (text,) = [str(one.message) for one in caught]
    assert "\n" not in text and "Who?" in text and "--model BAAI/Video-XL-2" in text


def test_nothing_is_marked_that_is_known_or_of_another_model():
    given = answers("Is there a dog?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert toy.with_doubts(runtime(KNOWN), memory(True), given) == given
        assert toy.with_doubts(runtime(None), memory(False), answers("Who?")) == answers("Who?")


def test_the_bundled_clip_is_known_to_be_generated():
    from vxl2_jax.video.index import read_index

    assert read_index(Path(NANO.parent, "demo.mp4")).generated
