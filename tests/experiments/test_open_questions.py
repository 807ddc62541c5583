"""Studies: clips are what they are said to be, a share is kept, marks follow from rows, runs go on where they were."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

import vxl2_jax as vxl2
from experiments.studies import block_size, contents, cost, memories, running, selection, tally
from experiments.studies.catalogue import STUDIES
from experiments.studies.study import CHUNKED, DENSE, Asked, Setting, Study, labelled
from experiments.synthetic import clips, pictures, questions, schedule, vocabulary
from vxl2_jax.config import LanguageConfig, ModelConfig, VisionConfig
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.planning import memory_model
from vxl2_jax.storage import locking
from vxl2_jax.text.tokenizer import Tokenizer


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


@pytest.mark.parametrize("study", [name for name, study in STUDIES.items() if not study.rows])
def test_clips_are_in_order_and_their_questions_answer_themselves(study):
    for content, seed in itertools.product(STUDIES[study].contents, range(3)):
        clip, asked = drawn(STUDIES[study].contents[content], seed)
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
    assert made.identity() == watched.identity()
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
    for study in STUDIES.values():
        for (content, draw), (name, setting) in itertools.product(study.contents.items(), study.settings.items()):
            layout = Layout(12, (1,) * round(drawn(draw)[0].seconds / 4), 9)
            length = layout.global_length + layout.groups * (9 // setting.compression)
            memory = SimpleNamespace(layout=layout, compression=setting.compression, sparse_length=length)
            if setting.share and not memories.interior(memory, setting.share, setting.chunk_size):
                without.add((study.name, content, name))
    assert without == {("selection", "as trained", "chunk 4, 35 %")}


def asked_about(*spans) -> Asked:
    return Asked("one", questions.Question("Is there a dog?", "yes", "exists", 0.5, evidence=spans))


def test_events_lie_in_the_chunks_whose_frames_show_them():
    assert running.shown_in(asked_about((7.1, 15.2)).question, 1, 12) == [[3, 4]]  # seconds 8 … 15
    assert running.shown_in(asked_about((8.0, 16.0)).question, 1, 12) == [[3, 4]]
    assert running.shown_in(asked_about((7.0, 16.1), (30.0, 38.0)).question, 2, 6) == [[2, 1, 3], [5, 4]]


def test_evidence_comes_first_and_lots_do_not_know_it(model):
    layout = Layout(12, (1,) * 16, 4)
    memory = SimpleNamespace(layout=layout)
    asked = asked_about((10.0, 17.0), (40.0, 52.0))
    ids = np.asarray(model.tokenizer.encode("\nIs there a dog?<|im_end|>\n<|im_start|>assistant\n"))

    def scores(relevance):
        return running._given(model, memory, [asked], Setting(share=35, relevance=relevance), np.random.default_rng(1))(
            ids, memory
        )

    assert np.argsort(-scores("evidence"), kind="stable")[:6].tolist() == [3, 10, 2, 11, 4, 12]
    assert scores("lot").max() < 1 and len(set(scores("lot"))) == 16


def test_evidence_is_held_where_every_event_has_a_dense_chunk():
    def answer(*dense):
        return SimpleNamespace(chunks=[SimpleNamespace(dense=index in dense) for index in range(12)])

    question = asked_about((8.0, 16.0), (40.0, 48.0)).question
    assert running.held(question, answer(3, 10), 1) == 1
    assert running.held(question, answer(2, 3), 1) == 0
    assert running.held(asked_about().question, answer(1), 1) is None


def mini(draws: list) -> Study:
    """A study of 32 seconds and two questions; `draws` receives the clips drawn."""

    def draw(rng, footage):
        clip = clips.draw_clip(rng, seconds=32, names=pictures.load()[0], footage=footage)
        draws.append(clip)
        return clip, labelled(questions.questions(rng, clip, 2, ("exists", "first")))

    settings = {"dense": replace(DENSE, compression=4), "lot": Setting(share=80, relevance="lot", compression=4)}
    return Study("mini", "A trial", settings, {"one": draw, "other": draw}, 2, draw=lambda path, report: None)


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(model, tmp_path):
    first, again = [], []
    whole = running.run(mini(first), model, tmp_path / "whole.jsonl", 2, 5, "")
    assert [(row["clip"], row["content"]) for row in whole] == [(0, "one"), (0, "other"), (1, "one"), (1, "other")]
    assert first[0] == first[1] != first[2], "a clip's number, not its kind, seeds the draw"
    assert whole[0]["settings"]["dense"]["loaded"] > whole[0]["settings"]["lot"]["loaded"]
    assert whole[0]["settings"]["dense"]["chosen"] == 6 > whole[0]["settings"]["lot"]["chosen"] > 0
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_text("".join(lines[:2]) + lines[2][:50])
    assert running.run(mini(again), model, tmp_path / "cut.jsonl", 2, 5, "") == whole and len(again) == 3
    assert (tmp_path / "cut.jsonl").read_text() == "".join(lines)
    assert running.run(mini(again), model, tmp_path / "cut.jsonl", 1, 5, "") == whole[:2] and len(again) == 3
    with pytest.raises(vxl2.RequestError, match="other settings"):
        running.run(mini([]), model, tmp_path / "cut.jsonl", 2, 6, "")
    assert (tmp_path / "cut.jsonl").read_text() == "".join(lines)


def test_rows_have_one_writer_and_what_is_no_file_of_rows_stays(tmp_path):
    path, about = tmp_path / "rows.jsonl", {"study": "mini"}
    with locking.open_locked(path) as file:
        assert running.resume(file, path, about) == []
        with pytest.raises(vxl2.RequestError, match="another process"), locking.open_locked(path):
            pass
    assert path.read_text() == '{"study": "mini"}\n'
    for text in ('{"stu', ""):
        path.write_text(text)
        with locking.open_locked(path) as file:
            assert running.resume(file, path, about) == []
        assert path.read_text() == '{"study": "mini"}\n', "a first line that was cut off is written again"
    for text in ("a diary", "a\ndiary\n"):
        path.write_text(text)
        with locking.open_locked(path) as file, pytest.raises(vxl2.RequestError, match="choose another --rows"):
            running.resume(file, path, about)
        assert path.read_text() == text


# Marks


def rows_for(study: Study, clip_count: int = 3) -> list[dict]:
    """Answers as a run might have given them."""
    rng, rows = np.random.default_rng(0), []
    for content, draw in study.contents.items():
        for clip in range(clip_count):
            asked = drawn(draw, clip)[1]

            def each():
                return rng.integers(2, size=len(asked)).tolist()  # noqa: B023

            settings = {
                name: {
                    "right": each(),
                    "held": each(),
                    "said": [],
                    "chosen": 3,
                    "loaded": 100 + 10 * place,
                    "dense": 400,
                    "pairs": 50 + place,
                    "causal": 100,
                }
                for place, name in enumerate(study.settings)
            }
            named = [[one.label, one.question.question, one.question.answer] for one in asked]
            rows.append({"content": content, "clip": clip, "seconds": 192.0, "asked": named, "settings": settings})
    return rows


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_tells_and_draws_what_came_of_it(name, tmp_path):
    study = STUDIES[name]
    report = tally.report(study, rows_for(study), seed=0)
    json.dumps(report)
    assert set(study.settings) <= set(next(iter(report["marks"].values())))
    assert all(setting in tally.as_text(report, labels=True) for setting in study.settings)
    study.draw(tmp_path / f"{name}.png", report)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


def test_marks_follow_from_rows():
    study = replace(mini([]), settings={"dense": DENSE, "chunked": CHUNKED}, contents={"one": None})
    one = {"loaded": 30, "dense": 60, "pairs": 10, "causal": 40, "chosen": 2}
    rows = [
        {
            "content": "one",
            "clip": clip,
            "asked": [["a", "", ""], ["a", "", ""], ["b", "", ""]],
            "settings": {
                "dense": one | {"right": [1, 1, 0], "held": [1, 1, 1]},
                "chunked": one | {"right": right, "held": held},
            },
        }
        for clip, (right, held) in enumerate([([1, 0, 0], [0, None, 1]), ([0, 0, 1], [1, None, None])])
    ]
    marks = tally.report(study, rows)["marks"]["one"]
    assert list(marks) == ["dense", "chunked"] and marks["dense"]["change"] is None
    dense, chunked = marks["dense"], marks["chunked"]
    assert dense["accuracy"] == 66.7 and dense["questions"] == 6 and dense["by"]["a"]["accuracy"] == 100.0
    assert dense["by"]["a"]["interval"] == [51.0, 100.0]  # Wilson, 4 of 4
    assert chunked["accuracy"] == 33.3 and chunked["held"] == 66.7 and chunked["held_by"]["b"] == 100.0
    change = chunked["change"]
    assert (change["points"], change["lost"], change["won"], change["questions"]) == (-33.3, 3, 1, 6)
    assert chunked["change_by"]["a"]["points"] == -75.0 and chunked["change_by"]["b"]["points"] == 50.0
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
    assert saved["pre-fill seconds"] == [37.5, 25.0, 50.0]  # median, least, greatest
    assert saved["seconds of question and answer"] == [0.0] * 3
    assert saved["the same with choosing and loading"] == [-50.0] * 3
    assert set(saved) == {*cost.WATCHING, *cost.ASKING}


def test_cost_draws(tmp_path):
    saved = {name: [10.0, 5.0, 15.0] for name in (*cost.WATCHING, *cost.ASKING)}
    frames = {count: {"tokens": 1, "saved_percent": saved} for count in ("256", "512")}
    report = {"title": "t", "share_percent": 35, "frames": frames}
    cost.draw(tmp_path / "cost.png", report)
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG") and "(5.0 … 15.0)" in cost.as_text(report)


def test_windows_come_about_in_several_ways():
    seen = [block * (before + 1) for block, befores in block_size.PREVIOUS.items() for before in befores]
    assert all(seen.count(window) >= 2 for window in (4, 8, 16, 32))
    assert {setting.share for setting in selection.STUDY.settings.values()} == {None, 0, *selection.SHARES}


def test_the_readme_lists_every_script_and_a_page_shows_every_study():
    folder = Path(contents.__file__).parents[1]
    text = (folder / "README.md").read_text()
    assert [
        script.name for script in folder.glob("[!_]*.py") if f"| [{script.name}]({script.name}) |" not in text
    ] == []
    page = (folder.parent / "docs" / "results" / "studies.md").read_text()
    for name in (*STUDIES, cost.NAME):
        assert f"Study `{name}`" in page and f"/results/open_questions/{name}.png)" in page
