"""Open questions: clips have the content they should have, a share is kept, and marks follow from records."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

import vxl2_jax as vxl2
from experiments.studies import (
    block_size,
    bursty,
    contents,
    cost,
    evidence,
    halves,
    memories,
    open_question,
    scene_changes,
    selection,
)
from experiments.studies.judging import Asked, by_type
from experiments.studies.open_question import CHUNKED, DENSE, EVIDENCE, RANDOM, OpenQuestion, Setting
from experiments.synthetic import clips, pictures, questions, schedule, vocabulary
from vxl2_jax.config import LanguageConfig, ModelConfig, VisionConfig
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.planning import memory_model
from vxl2_jax.text.tokenizer import Tokenizer

QUESTIONS = [module.QUESTION for module in (block_size, selection, halves, bursty, scene_changes, evidence)]


def drawn(draw, seed: int = 0):
    return draw(np.random.default_rng(seed), "")


@pytest.fixture(scope="module")
def model():
    """A tiny model of nano's words with random weights."""
    config = ModelConfig(
        vision=VisionConfig(image_size=28, patch_size=14, width=16, layers=1, heads=2, mlp=16),
        language=LanguageConfig(
            width=16,
            layers=2,
            heads=2,
            kv_heads=1,
            head_width=8,
            mlp=16,
            vocabulary=len(vocabulary.words()),
            rope_theta=1e4,
        ),
        resized_grid=2,
        pool=1,
        norm_groups=8,
        visual_placeholder=1,
        stop_tokens=(3,),
    )
    tokenizer, before = Tokenizer(vocabulary.tokenizer().to_str()), jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)  # most of the time would go there
    yield vxl2.Model("tiny", config, toys.model(config).params, tokenizer, "tiny")
    jax.config.update("jax_disable_most_optimizations", before)


# Clips


@pytest.mark.parametrize("study", QUESTIONS, ids=lambda study: study.name)
def test_clips_are_in_order_and_their_questions_answer_themselves(study):
    for draw, seed in itertools.product(study.contents.values(), range(3)):
        clip, asked = drawn(draw, seed)
        assert clip.events[0].start_s >= 0 and clip.events[-1].stop_s <= clip.seconds
        assert all(one.stop_s <= other.start_s for one, other in zip(clip.events, clip.events[1:], strict=False))
        assert len(asked) % 4 == 0
        assert all(questions.is_right(question, question.answer) for _, question in asked)
        shown = [(event.start_s, event.stop_s) for event in clip.events]
        assert all(span in shown for _, question in asked for span in question.evidence)


def test_bursts_leave_what_even_content_has_not():
    def longest_pause(count):
        events = drawn(contents.bursts(count))[0].events
        return max(b.start_s - a.stop_s for a, b in zip(events, events[1:], strict=False))

    assert longest_pause(1) == pytest.approx(schedule.GAP, abs=0.11)
    assert 7 < longest_pause(12) < 8
    assert longest_pause(3) > 8
    assert all(len(drawn(contents.bursts(count))[0].events) == 12 for count in (12, 3, 1))


@pytest.mark.parametrize("stay", [16, 8, 4])
def test_scenes_change_on_borders_or_two_seconds_past_them(stay):
    for offset in (0, 2):
        clip, _ = drawn(contents.scenes(stay, offset))
        changes = [event.start_s for event in clip.events]
        assert [scene.start_s for scene in clip.scenes] == changes
        assert len({scene.seed for scene in clip.scenes}) == len({event.name for event in clip.events}) == len(changes)
        assert all(change % 4 == offset for change in changes[1:])
        assert np.diff(changes[1:]).tolist() == [stay] * (len(changes) - 2)


def test_pictures_return_near_and_far():
    for seed in range(10):
        clip, asked = drawn(contents.returning, seed)
        counted = Counter(label for label, _ in asked)
        assert len(asked) == 16 and set(counted) == set(contents.LABELS)
        assert counted["first, neighbours"] == counted["first, far apart"] == 4
        between = {label: np.diff([start for start, _ in question.evidence]) for label, question in asked}
        assert len(between["count, three spread evenly"]) == 2 and min(between["count, three spread evenly"]) > 50
        assert len(between["count, three close together"]) == 2 and max(between["count, three close together"]) < 30
        assert between["count, two far apart"] > 100 and between["count, two close together"] < 30
        assert not len(between["count, once"])
        for label, question in asked:
            if label.startswith("first"):
                one, other = (start for start, _ in question.evidence)
                starts = [event.start_s for event in clip.events]
                if label.endswith("far apart"):
                    assert other - one > 96
                else:
                    assert starts.index(other) == starts.index(one) + 1, "nothing is shown between neighbours"
            if label.startswith("count"):
                assert len(question.evidence) == sum(event.name in question.question for event in clip.events)
        assert len({event.name for event in clip.events} - set(pictures.load()[0])) == 0


# Watching and asking


def test_a_clip_pre_filled_from_its_visual_tokens_is_a_clip_watched(model):
    frames = np.random.default_rng(0).integers(256, size=(70, 28, 28, 3), dtype=np.uint8)
    seconds = np.arange(70.0)
    made = memories.remember(model, memories.visual_tokens(model, frames), seconds, PrefillRule(2, 1), 2)
    watched = model.watch((frames, seconds), block_size=2, prev_blocks=1, compression=2)
    assert made.identity() == watched.identity() | {"generated": True}
    jax.tree.map(np.testing.assert_array_equal, (made.dense, made.sparse), (watched.dense, watched.sparse))


@given(
    groups=st.integers(3, 130),
    visual=st.integers(2, 9),
    chunk=st.integers(1, 6),
    compression=st.integers(1, 9),
    share=st.floats(1, 99),
)
def test_a_share_is_used_up_and_not_exceeded(groups, visual, chunk, compression, share):
    layout, compression = Layout(12, (1,) * groups, visual), min(compression, visual)
    length = layout.global_length + groups * (visual // compression)
    memory = SimpleNamespace(layout=layout, compression=compression, sparse_length=length)
    if compression == 1:
        return  # nothing is saved by pooling
    chosen = memories.interior(memory, share, chunk)

    def loaded(top_k):
        return memory_model.cached_tokens(layout, memory_model.Workload(compression, chunk, top_k))[0]

    if chosen:
        assert loaded(chosen) <= share / 100 * layout.length
    if chosen + 2 < layout.chunks(chunk):
        assert loaded(chosen + 1) > share / 100 * layout.length


def test_every_share_that_is_compared_leaves_a_choice_but_for_the_largest_chunks():
    without = set()
    for study in QUESTIONS:
        for (content, draw), (name, setting) in itertools.product(study.contents.items(), study.settings.items()):
            layout = Layout(12, (1,) * round(drawn(draw)[0].seconds / 4), 9)
            length = layout.global_length + layout.groups * (9 // setting.compression)
            memory = SimpleNamespace(layout=layout, compression=setting.compression, sparse_length=length)
            if setting.share and not memories.interior(memory, setting.share, setting.chunk_size):
                without.add((study.name, content, name))
    assert without == {("selection", "as trained", "chunk 4, 35 %")}


def asked_about(*spans) -> Asked:
    return Asked("one", questions.Question("Is there a dog?", "yes", "exists", 0.5, evidence=spans))


def test_evidence_comes_first_and_other_scores_are_random():
    asked, rng = asked_about((10.0, 17.0), (40.0, 52.0)), np.random.default_rng(1)
    (scores,) = open_question.scores_of([asked], EVIDENCE, 1, 16, rng)
    assert np.argsort(-scores, kind="stable")[:6].tolist() == [3, 10, 2, 11, 4, 12]
    one, other = open_question.scores_of([asked, Asked("two", asked.question)], RANDOM, 1, 16, rng)
    assert one.max() < 1 and len(set(one)) == 16 and one is other, "the same text has the same scores"


def test_a_question_is_answered_in_all_settings(model):
    draws = []

    def draw(rng, footage):
        draws.append(clips.draw_clip(rng, seconds=32, names=pictures.load()[0], footage=footage))
        return draws[-1], by_type(questions.questions(rng, draws[-1], 2, ("exists", "first")))

    random = Setting(share=80, relevance=RANDOM, compression=4)  # one rule and one compression: few executables
    settings = {"random": random, "evidence": replace(random, relevance=EVIDENCE)}
    question = OpenQuestion("mini", "A trial", settings, {"one": draw, "other": draw})
    records = {f"{kind}/0": open_question.answered(model, question, kind, 0, 5, "") for kind in question.contents}
    assert draws[0] == draws[1] and records["one/0"] == records["other/0"]
    found = records["one/0"]["settings"]
    assert found["random"]["loaded"] == found["evidence"]["loaded"] <= 0.8 * found["random"]["dense"]
    assert 0 < found["random"]["chosen"] < found["random"]["chunks"] - 2
    report = open_question.report_of(question, json.loads(json.dumps(records)))
    assert report["clips"] == {"one": 1, "other": 1, "all": 2} and report["marks"]["all"]["random"]["change"] is None
    assert report["marks"]["all"]["evidence"]["change"]["questions"] == 4
    assert all(name in open_question.as_markdown(report) for name in settings)


def test_marks_follow_from_records():
    question = OpenQuestion("mini", "A trial", {"dense": DENSE, "chunked": CHUNKED}, {"one": None})
    one = {"loaded": 30, "dense": 60, "pairs": 10, "causal": 40, "chosen": 2, "inside": [0, 0, 0]}
    records = {
        f"one/{clip}": {
            "asked": [["a", "", ""], ["a", "", ""], ["b", "", ""]],
            "settings": {
                "dense": one | {"right": [1, 1, 0], "held": [1, 1, 1]},
                "chunked": one | {"right": right, "held": held},
            },
        }
        for clip, (right, held) in enumerate([([1, 0, 0], [0, None, 1]), ([0, 0, 1], [1, None, None])])
    }
    marks = open_question.report_of(question, records)["marks"]["one"]
    dense, chunked = marks["dense"], marks["chunked"]
    assert dense["change"] is None and dense["accuracy"] == 66.7 and dense["by"]["a"]["accuracy"] == 100.0
    assert chunked["accuracy"] == 33.3 and chunked["held"] == 66.7 and chunked["held_by"]["b"] == 100.0
    assert chunked["change"]["points"] == -33.3 and chunked["change_by"]["b"]["points"] == 50.0
    assert chunked["cache_percent"] == 50.0 and chunked["pairs_percent"] == 25.0 and chunked["chosen"] == 2


def test_savings_are_ratios_of_rounds():
    plans = {
        name: SimpleNamespace(flops={"vision": 60, "language_linear": 20, "attention": attention})
        for name, attention in (("dense", 20), ("chunked", 10))
    }
    timed = {"vision": [3.0, 3.0], "prefill, dense": [2.0, 4.0], "prefill, chunked": [1.0, 3.0]}
    timed |= {f"{stage}, {name}": [1.0, 1.0] for stage in ("load", "decode") for name in ("whole", "bilevel")}
    timed |= {"relevance, whole": [0.0, 0.0], "relevance, bilevel": [1.0, 1.0]}
    saved = cost._saved(plans, timed, 0.35)
    assert saved["attention FLOPs"] == [50.0] * 3 and saved["pre-fill FLOPs"] == [25.0] * 3
    assert saved["vision and pre-fill FLOPs"] == [10.0] * 3 and saved["key/value bytes"] == [65.0] * 3
    assert saved["pre-fill seconds"] == [37.5, 25.0, 50.0]  # median, minimum, maximum
    assert saved["seconds of question and answer"] == [0.0] * 3
    assert saved["the same with choosing and loading"] == [-50.0] * 3
    assert set(saved) == {*cost.WATCHING, *cost.ASKING}


def test_windows_come_about_in_several_ways():
    seen = [rule.block_size * (rule.prev_blocks + 1) for rule in block_size.BLOCKS.values()]
    assert all(seen.count(window) >= 2 for window in (4, 8, 16, 32))
