"""The command line: what it prints, writes and returns."""

import json
import os

import jax
import pytest

from pallas_kernels import attention
from vxl2_jax import cli, hardware


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def run(capsys, *args: object) -> tuple[int, str, str]:
    code = cli.main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def test_ask_prints_one_json_document(capsys, model_dir, clip):
    code, out, _ = run(
        capsys,
        "ask",
        clip,
        "what?",
        "is there 7?",
        "--model",
        model_dir,
        "--json",
        "--top-k",
        1,
        "--chunk-size",
        2,
        "--max-new-tokens",
        3,
        "--block-size",
        1,
        "--prev-blocks",
        2,
    )
    document = json.loads(out)
    assert code == 0
    assert document["video"]["frames"] == 40
    assert [answer["question"] for answer in document["answers"]] == ["what?", "is there 7?"]
    assert document["attention"]["pairs_kept"] < document["attention"]["pairs_causal"]
    answer = document["answers"][0]
    assert sum(chunk["dense"] for chunk in answer["chunks"]) == 3
    assert answer["chunks"][-1]["end_s"] == pytest.approx(40, abs=0.3)
    assert answer["cache"]["ratio"] < 1
    assert {"read", "vision", "prefill"} <= document["timings_s"].keys()
    assert document["attention_kernel"] == "reference, in float32: no kernel is written for cpu"


def test_ask_draws_a_plot_and_a_timeline(capsys, model_dir, clip, tmp_path):
    picture = tmp_path / "answer.png"
    code, out, _ = run(capsys, "ask", clip, "what?", "--model", model_dir, "--plot", picture, "--max-new-tokens", 2)
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "dense" in out and "saved" in out
    assert os.listdir(tmp_path).count("answer.png") == 1


def test_the_attention_kernel_can_be_chosen_and_is_told(capsys, model_dir, clip):
    arguments = ("ask", clip, "what?", "--model", model_dir, "--max-new-tokens", 2, "--max-frames", 8)
    answers = {}
    for name in ("reference", "tpu"):
        code, out, error = run(capsys, *arguments, "--attention", name, "--json")
        assert code == 0 and f"attention: {name}, as asked" in error
        answers[name] = json.loads(out)["answers"][0]["answer"]
    assert answers["tpu"] == answers["reference"]
    code, _, error = run(capsys, *arguments, "--attention", "hopper")
    line = error.strip()
    assert code == 2 and line.startswith("vxl2: the Hopper kernel") and "\n" not in line


def test_the_help_names_every_attention_kernel():
    ask = cli.build_parser()._subparsers._group_actions[0].choices["ask"]
    (option,) = [action for action in ask._actions if "--attention" in action.option_strings]
    assert tuple(option.choices) == attention.NAMES


def test_none_and_all_switch_the_two_ideas_off(capsys, model_dir, clip):
    code, out, _ = run(
        capsys,
        "ask",
        clip,
        "what?",
        "--model",
        model_dir,
        "--json",
        "--prev-blocks",
        "none",
        "--top-k",
        "all",
        "--max-new-tokens",
        2,
    )
    document = json.loads(out)
    assert code == 0
    assert document["attention"]["reduction_percent"] == 0
    assert document["answers"][0]["cache"]["ratio"] == 1


def test_convert_writes_a_directory_that_answers_alike(capsys, model_dir, clip, tmp_path):
    target = tmp_path / "native"
    assert run(capsys, "convert", model_dir, target, "--dtype", "float32")[0] == 0
    ask = ("ask", clip, "what?", "--json", "--max-new-tokens", 4, "--model")
    ours, theirs = (json.loads(run(capsys, *ask, model)[1])["answers"] for model in (target, model_dir))
    assert [a["answer"] for a in ours] == [a["answer"] for a in theirs]
    code, _, err = run(capsys, "convert", model_dir, target)
    assert code == 2 and "exists" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": "no/such.mp4"}, "no such file"),
        ({"--model": "no/such/dir"}, "no such checkpoint"),
        ({"--top-k": "-3"}, "top_k"),
        ({"--fps": "0"}, "fps"),
        ({"--max-frames": "0"}, "max_frames"),
        ({"--block-size": "0"}, "block_size"),
        ({"--relevance": "magic"}, "magic"),
        ({"--plot": "no/such/folder/p.png"}, "plot"),
        ({"--plot": "p.txt"}, "plot"),
        ({"question": " "}, "empty"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(capsys, model_dir, clip, change, message):
    options = {"--model": str(model_dir), **{k: v for k, v in change.items() if k.startswith("--")}}
    flags = [part for pair in options.items() for part in pair]
    code, out, err = run(capsys, "ask", change.get("video", clip), change.get("question", "what?"), "--quiet", *flags)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1 and message in err


def test_programs_are_kept_apart_by_the_cores_they_were_made_for(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        for cores in (1, 3):
            monkeypatch.setattr(hardware, "cpu_cores", lambda cores=cores: cores)
            jax.config.update("jax_compilation_cache_dir", None)
            cli._keep_compiled_programs()
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / "vxl2_jax" / "xla" / f"{cores}-cores")
        jax.config.update("jax_compilation_cache_dir", "elsewhere")
        cli._keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == "elsewhere", "who has said where is obeyed"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_an_unknown_option_says_how_to_use_it(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["ask", "clip.mp4", "what?", "--tpo-k", "3"])
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["--help"], ["ask", "--help"], ["convert", "--help"]])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 0
    assert "vxl2" in capsys.readouterr().out
