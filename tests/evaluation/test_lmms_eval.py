"""The lmms-eval plug-in: arguments, documents and requests; and a run of lmms-eval where it is installed."""

import json
import os
import subprocess
import sys
import tomllib
import weakref
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from vxl2_jax.answer import Answer
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.settings import MODES, released
from vxl2_jax.lmms_plugin import requests, settings
from vxl2_jax.options import AskOptions

from .standin import StandIn

ROOT = Path(__file__).resolve().parents[2]
TASK = ROOT / "experiments" / "lmms_task"
with_lmms_eval = pytest.mark.skipif(
    find_spec("lmms_eval") is None, reason="lmms-eval is not installed; see python -m experiments.synthetic lmms --help"
)


class Model(StandIn):
    """Remembers how it was asked, and says what it was asked."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def answer_all(self, jobs, *, watch, ask):
        def noted():
            for job in jobs:
                self.batches.append((Path(job.video).name, list(job.questions), ask.get("max_new_tokens")))
                yield job

        return super().answer_all(noted(), watch=watch, ask=ask)

    def _answer(self, text, length):
        return Answer(text, f"{text}, says I.\n\nMore", (1,), True, (), length, length, {})


@pytest.fixture
def videos(tmp_path) -> list[str]:
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_bytes(b"." * (40 + number))
    return [str(tmp_path / f"{number}.mp4") for number in range(3)]


# Arguments


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_alone_is_as_released_but_for_the_answer(mode):
    watch, ask = released("mlvu", mode)
    found = settings.read({"mode": mode})
    assert found.model == {"name": "nano"} and found.watch == watch
    assert found.ask == {
        name: value for name, value in ask.items() if name not in ("max_new_tokens", "temperature", "top_p")
    }


def test_the_released_settings_of_another_benchmark_can_be_the_defaults():
    found = settings.read({"settings": "lvbench", "mode": "chunked", "max_frames": 32})
    assert found.watch == released("lvbench", "chunked")[0] | {"max_frames": 32}
    assert found.watch["prev_blocks"] == 11 and found.ask["top_k"] is None


def test_an_argument_replaces_one_setting_whatever_type_it_was_parsed_to():
    found = settings.read(
        {
            "pretrained": "some/where",
            "fps": 2,
            "max_frames": "none",
            "prev_blocks": "none",
            "top_k": "all",
            "chunk_size": 2,
            "relevance": "uniform",
            "seed": "7",
            "dtype": "float32",
            "attention": "reference",
        }
    )
    assert found.model == {"name": "some/where", "dtype": "float32", "attention": "reference"}
    assert found.watch == released("mlvu", "bilevel")[0] | {"fps": 2.0, "max_frames": None, "prev_blocks": None}
    assert found.ask == {"relevance": "uniform", "top_k": None, "chunk_size": 2, "seed": 7, "text": "original"}


def test_what_lmms_eval_hands_to_every_model_is_passed_over():
    assert settings.read({"batch_size": 1, "max_batch_size": 8, "device": "cuda"}) == settings.read({})


@pytest.mark.parametrize(
    "model_args, key",
    [
        ({"fsp": 1}, "unknown fsp; known are pretrained, mode, .*relevance"),
        ({"max_new_tokens": 8}, "unknown max_new_tokens; .*--gen_kwargs"),
        ({"mode": "sparse"}, "mode=sparse: choose dense, chunked, bilevel"),
        ({"settings": "mmlu"}, "settings=mmlu: choose mlvu, video_mme, longvideobench, lvbench"),
        ({"dtype": "int4"}, "dtype=int4: choose float32"),
        ({"max_frames": "many"}, "max_frames must be .*none, not 'many'"),
        ({"block_size": 2.5}, "block_size must be a whole number .*not 2.5"),
        ({"block_size": True}, "block_size must be a whole number .*not True"),
        ({"seed": 10**5000}, "seed must be a whole number"),
        ({"relevance": 10**5000}, "relevance must be a text"),
        ({"fps": "fast"}, "fps must be a number .*'fast'"),
        ({"chunk_size": 0}, "chunk_size .*not 0"),
        ({"relevance": "luck"}, "relevance 'luck'"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(model_args, key):
    with pytest.raises(RequestError, match=key) as error:
        settings.read(model_args)
    assert "\n" not in str(error.value)


# Documents


@pytest.mark.parametrize("visuals", [["a/b.mp4"], "a/b.mp4", [Path("a/b.mp4")], ("a/b.mp4",)])
def test_one_video_is_its_path(visuals):
    assert requests.video_of(visuals, "a task") == "a/b.mp4"


@pytest.mark.parametrize(
    "visuals, found",
    [
        (None, "no video"),
        ([], "no video"),
        ([Image.new("RGB", (2, 2))], "Image"),
        (["a.png"], "an image file"),
        (["a.mp4", "b.mp4"], "2 of video"),
        (["a.mp4", "a.webp"], "2 of an image file, video"),
        ([{"url": "a.mp4"}], "dict"),
    ],
)
def test_anything_but_one_video_is_refused_in_one_line_with_the_document(visuals, found):
    with pytest.raises(RequestError, match=f"^mmmu, document 3: {found}; .*one video file") as error:
        requests.request(visuals, "What?", {}, "mmmu, document 3")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given, ask, until",
    [
        ({}, {}, ()),
        ({"until": None, "do_sample": False}, {}, ()),
        (
            {"max_new_tokens": 16, "temperature": 0.0, "top_p": 0, "until": ["\n\n", ""]},
            {"max_new_tokens": 16},
            ("\n\n",),
        ),
        ({"temperature": 0.5, "until": "Q:"}, {"temperature": 0.5, "top_p": 1.0}, ("Q:",)),
        ({"temperature": 0.5, "top_p": 0.9, "do_sample": True}, {"temperature": 0.5, "top_p": 0.9}, ()),
        ({"temperature": 0.5, "do_sample": False, "num_beams": 1}, {}, ()),
    ],
)
def test_generation_kwargs_become_options_of_asking(given, ask, until):
    assert requests.generation(given, "a task") == (ask, until)
    AskOptions(**ask).check()


@pytest.mark.parametrize(
    "given",
    [
        None,
        [("until", "x")],
        {"until": 3},
        {"until": ["a", None]},
        {"until": b"x"},
        {"do_sample": "no", "temperature": 1.0},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": True},
        {"max_new_tokens": 10**5000},
        {"max_new_tokens": "1_0"},
        {"temperature": [1]},
        {"temperature": float("nan")},
        {"temperature": 1.0, "top_p": {}},
        {"num_beams": "4"},
    ],
    ids=lambda given: repr(given)[:40] if not isinstance(given, dict) else ",".join(given),
)
def test_values_of_the_wrong_type_are_refused_in_one_line_with_the_document(given):
    with pytest.raises(RequestError, match="a task") as error:
        requests.generation(given, "a task")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    requests.ignored_names([given])


def test_beam_search_is_refused_and_ignored_kwargs_are_named():
    with pytest.raises(RequestError, match="a task: num_beams=5"):
        requests.generation({"num_beams": 5}, "a task")
    given = [{"image_aspect_ratio": "pad", "until": []}, {"top_k": 5, "max_new_tokens": 2}]
    assert requests.ignored_names(given) == ["image_aspect_ratio", "top_k"]


# Requests


def asked(model, wanted, **options):
    return requests.answer_all(
        model, wanted, released("mlvu", "chunked")[0], {"top_k": None, "max_new_tokens": 64}, **options
    )


def test_a_video_is_watched_once_for_all_its_questions_and_answers_keep_their_order(videos):
    model, advanced = Model(), []
    order = [(0, "a"), (0, "b"), (2, "c"), (1, "d"), (0, "e")]
    texts = asked(
        model, [requests.EvalRequest(videos[video], text, {}) for video, text in order], advance=advanced.append
    )
    assert model.batches == [("0.mp4", ["a", "b", "e"], 64), ("2.mp4", ["c"], 64), ("1.mp4", ["d"], 64)]
    assert texts == [f"{text}, says I.\n\nMore" for text in "abcde"] and advanced == [3, 1, 1]


def test_questions_of_another_task_are_asked_in_its_way(videos):
    model = Model()
    asked(
        model,
        [
            requests.EvalRequest(videos[0], text, ask)
            for text, ask in (("a", {}), ("b", {"max_new_tokens": 4}), ("c", {}))
        ],
    )
    assert model.batches == [("0.mp4", ["a", "c"], 64), ("0.mp4", ["b"], 4)]


def test_an_answer_ends_before_the_first_text_that_ends_it(videos):
    wanted = [requests.EvalRequest(videos[0], "a", {}, until) for until in ((), ("\n\n",), ("\n\n", " I"), ("?",))]
    assert asked(Model(), wanted) == ["a, says I.\n\nMore", "a, says I.", "a, says", "a, says I.\n\nMore"]


def test_a_broken_video_leaves_its_answers_empty_is_logged_and_stops_nothing(videos, caplog):
    Path(videos[1]).write_bytes(b"broken")
    wanted = [requests.EvalRequest(videos[video], str(video), {}) for video in (0, 1, 2, 1)]
    assert [bool(text) for text in asked(Model(), wanted)] == [True, False, True, False]
    assert "1.mp4: cannot be read" in caplog.text and "2 of 4 answers are empty" in caplog.text


def test_no_memory_is_kept_while_the_next_video_is_watched(videos, monkeypatch):
    seen, plain = [], StandIn.answer_all

    def answer_all(model, jobs, **options):
        for done in plain(model, jobs, **options):
            seen.append(weakref.ref(done))
            held = [done]
            del done
            yield held.pop()
            assert seen[-1]() is None

    monkeypatch.setattr(StandIn, "answer_all", answer_all)
    asked(Model(), [requests.EvalRequest(video, "a", {}) for video in videos])
    assert len(seen) == len(videos)


# lmms-eval


def test_reading_arguments_and_answering_import_no_lmms_eval():
    assert {"vxl2_jax.lmms_plugin.settings", "vxl2_jax.lmms_plugin.requests"} <= set(sys.modules)
    assert "lmms_eval" not in sys.modules


def test_the_entry_point_names_what_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["lmms_eval.models"]["vxl2_jax"].split(":")
    assert callable(getattr(import_module(module), name))


@with_lmms_eval
@pytest.mark.timeout(900)  # half a minute of it is imports
def test_lmms_eval_prints_its_table_with_our_model_in_it(tmp_path):
    env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = str(ROOT)

    def run(*command):
        return subprocess.run(
            [sys.executable, *map(str, command)], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    made = run("-m", "experiments.synthetic", "lmms", "--videos", 2, "--questions", 2)
    assert made.returncode == 0, made.stderr
    found = run(
        "-m",
        "lmms_eval",
        "--model",
        "vxl2_jax",
        "--model_args",
        "pretrained=nano,mode=bilevel,chunk_size=2,top_k=1",
        "--include_path",
        TASK,
        "--tasks",
        "nano_clips",
        "--output_path",
        tmp_path / "out",
        "--log_samples",
    )
    assert "|nano_clips|none" in found.stdout, found.stderr
    (samples,) = (tmp_path / "out").rglob("*_samples_nano_clips.jsonl")
    assert len(samples.read_text().splitlines()) == 4
    (results,) = (tmp_path / "out").rglob("*_results.json")
    data = json.loads(results.read_text())
    assert data["config"]["model"] == "vxl2_jax" and 0 <= data["results"]["nano_clips"]["right,none"] <= 1


@with_lmms_eval
def test_what_the_model_cannot_do_is_reported_in_one_line():
    code = """if True:
        import os
        from vxl2_jax.errors import RequestError
        from vxl2_jax.lmms_plugin.model import Vxl2Jax
        model = Vxl2Jax()
        for call in (lambda: model.loglikelihood([]), lambda: model.generate_until_multi_round([]), Vxl2Jax):
            try:
                call()
            except RequestError as error:
                print(error)
            os.environ["WORLD_SIZE"] = "2"
    """
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    lines = found.stdout.strip().splitlines()
    assert len(lines) == 3, found.stderr
    assert "no log-likelihoods" in lines[0] and "one round" in lines[1] and "one process" in lines[2]
