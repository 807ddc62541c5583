"""Watching and asking through the public interface."""

import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import vxl2_jax as vxl2
from vxl2_jax import decode, encode, generate, prefill, relevance

from .conftest import ASKED, noise
from .test_questions import QUESTIONS, assert_alike


def leaves_equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


SELECT, TRIAL = "pallas_kernels.attention.select", "vxl2_jax.kernel_trial.trial"


def test_kernels_that_fail_their_self_test_are_skipped_with_the_reason(model_dir, monkeypatch):
    from pallas_kernels import attention

    choose = attention.choose_kernel
    card = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", compute_capability="9.0")
    monkeypatch.setattr(f"{SELECT}.choose_kernel", lambda name, **given: choose(name, **{**given, "device": card}))

    def load():
        return vxl2.load(model_dir, "bfloat16")

    monkeypatch.setattr(TRIAL, lambda *_, **__: None)
    first = load()
    monkeypatch.setattr(TRIAL, lambda kernel, **_: f"{kernel.name} is off")
    second = load()
    assert first.kernel.name != "reference" and "NVIDIA H200" in first.kernel_reason
    assert second.kernel.name == "reference"
    assert "not ampere (" in second.kernel_reason and "ampere is off" in second.kernel_reason
    if first.kernel.name == "hopper":
        assert "not hopper (" in second.kernel_reason and "hopper is off" in second.kernel_reason
        monkeypatch.setattr(TRIAL, lambda kernel, **_: "off" if kernel.name == "hopper" else None)
        assert load().kernel.name == "ampere"


@pytest.mark.slow
def test_an_earlier_video_has_no_effect_on_a_later_one(model):
    fresh = model.watch(noise(40, seed=2))
    answer = model.ask(fresh, "is there 7?", top_k=1, chunk_size=2, max_new_tokens=6)
    jax.clear_caches()
    model.ask(model.watch(noise(90, seed=1)), "what?", max_new_tokens=6)
    again = model.watch(noise(40, seed=2))
    assert leaves_equal(fresh, again)
    assert model.ask(again, "is there 7?", top_k=1, chunk_size=2, max_new_tokens=6) == answer


def test_asking_changes_nothing_and_the_same_question_gets_the_same_answer(model, memory):
    before = jax.tree.map(np.array, memory)
    first = model.ask(memory, "is there 7?", **ASKED)
    model.ask(memory, "what is there at 12?", temperature=1.0, **ASKED)
    assert model.ask(memory, "is there 7?", **ASKED) == first
    assert leaves_equal(before, memory)


def test_questions_in_a_list_are_answered_as_one_by_one(model, memory):
    questions = QUESTIONS[:4]
    assert_alike(model.ask(memory, questions, **ASKED), [model.ask(memory, q, **ASKED) for q in questions])


def test_another_question_or_video_of_like_length_compiles_nothing(model):
    compiled = (encode.encode_groups, prefill.run_stride, decode.generate, relevance.chunk_attention)
    model.ask(model.watch(noise(40, seed=1)), "what is there at 7?", **ASKED)
    sizes = [function._cache_size() for function in compiled]
    memory = model.watch(noise(39, seed=2))
    for question in ("is there a user?", "what?", "what is there at 12 13 14 15?"):
        model.ask(memory, question, **ASKED)
    assert [function._cache_size() for function in compiled] == sizes


def test_all_dense_reads_the_whole_memory(model):
    memory = model.watch(noise(40), prev_blocks=None)
    whole = model.ask(memory, "what?", top_k=None, max_new_tokens=6)
    every_chunk = model.ask(memory, "what?", top_k=99, chunk_size=2, max_new_tokens=6)
    assert whole.cache_ratio == every_chunk.cache_ratio == 1
    assert whole.tokens == every_chunk.tokens
    assert all(chunk.dense for chunk in whole.chunks)


def test_first_last_and_the_best_scored_chunk_are_dense(model, memory):
    wanted = np.array([7, 1, 0, 5, 9])
    answer = model.ask(memory, "what?", relevance=lambda ids, mem: wanted, **ASKED)
    assert [chunk.dense for chunk in answer.chunks] == [True, False, False, True, True]
    assert answer.cache_ratio < 1
    assert [(c.start_s, c.end_s) for c in answer.chunks[:2]] == [(0.0, 8.0), (8.0, 16.0)]


@pytest.mark.parametrize("scorer", sorted(relevance.SCORERS))
def test_every_scorer_gives_a_score_per_chunk(model, memory, scorer):
    answer = model.ask(memory, "what?", relevance=scorer, **ASKED)
    assert len(answer.chunks) == 5
    assert all(np.isfinite(chunk.score) for chunk in answer.chunks)
    assert sum(chunk.dense for chunk in answer.chunks) == 3


def test_history_is_part_of_the_question(model, memory):
    first = model.ask(memory, "is there 7?", **ASKED)
    assert model.ask(memory, "what?", history=[first], **ASKED).tokens != ()
    text = generate.prompt.suffix_text("what?", [("is there 7?", "8 9")])
    assert text.index("is there 7?") < text.index("8 9") < text.index("what?")


def test_an_oracle_file_is_replayed(model, clip, tmp_path):
    oracle = tmp_path / "oracle.json"
    oracle.write_text(
        '{"a": null, "b": {"config": {"selected_topk": null, "selected_chunk_size": 2, "compression": 2},'
        ' "selected_unit_indices": {"clip.mp4_what?": [2], "clip_is it?": []}}}'
    )
    memory = model.watch(clip)
    answer = model.ask(memory, "what?", relevance=f"oracle:{oracle}", max_new_tokens=6)
    assert [chunk.dense for chunk in answer.chunks] == [True, False, True, False, True]
    assert model.ask(memory, "is it?", relevance=f"oracle:{oracle}", max_new_tokens=6).cache_ratio == 1
    with pytest.raises(vxl2.RequestError, match="plain dense"):
        model.ask(memory, "unknown?", relevance=f"oracle:{oracle}")


def test_a_drawn_answer_depends_on_the_seed_alone(model, memory):
    def draw(seed):
        return model.ask(memory, "what?", temperature=5.0, seed=seed, **ASKED).tokens

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_runs(model_dir, dtype):
    model = vxl2.load(model_dir, dtype)
    memory = model.watch(noise(40))
    assert memory.dense.visual.k.dtype == dtype
    answer = model.ask(memory, "what?", **ASKED)
    assert all(np.isfinite(chunk.score) for chunk in answer.chunks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"relevance": "best"}, "best"),
        ({"relevance": lambda ids, memory: [1.0]}, "scores"),
        ({"relevance": "oracle:/no/such"}, "oracle"),
    ],
)
def test_a_wrong_option_is_named(model, memory, options, message):
    with pytest.raises(vxl2.RequestError, match=message):
        model.ask(memory, "what?", **options)


def test_wrong_frames_questions_and_memories_are_refused(model, memory):
    with pytest.raises(vxl2.RequestError, match="frames must be"):
        model.watch((np.zeros((4, 41, 42, 3), np.uint8), np.arange(4)))
    with pytest.raises(vxl2.RequestError, match="compression"):
        model.watch(noise(8), compression=5)
    with pytest.raises(vxl2.RequestError, match="block_size"):
        model.watch(noise(8), block_size=0)
    with pytest.raises(vxl2.RequestError, match="empty"):
        model.ask(memory, "  ")
    with pytest.raises(vxl2.RequestError, match="another model"):
        model.ask(memory.replace(model="other"), "what?")
    with pytest.raises(vxl2.RequestError, match="damaged"):  # as a file with other sizes would give
        model.ask(memory.replace(sparse=jax.tree.map(lambda part: part[:, :1], memory.sparse)), "what?")


def test_wrong_calls_raise_errors_of_the_package(model_dir, tmp_path):
    """In a process of its own: the type checks of this one would come first."""
    script = Path(__file__).with_name("wrong_calls.py")
    run = subprocess.run([sys.executable, script, model_dir, tmp_path], capture_output=True, text=True, check=True)
    assert not run.stdout
