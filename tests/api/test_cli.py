"""The command line: what it prints, writes and returns."""

import json
import os
import shutil

import av
import pytest

from vxl2_jax.video.index import GENERATED

from .conftest import SHORT


def test_ask_prints_one_json_document(command, model_dir, clip):
    asking = ("--top-k", 1, "--chunk-size", 2, "--max-new-tokens", 6, "--block-size", 1, "--prev-blocks", 2)
    code, out, _ = command("ask", clip, "what?", "is there 7?", "--model", model_dir, "--json", *asking)
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
    assert "reference" in document["attention_kernel"] and "float32" in document["attention_kernel"]


def test_a_conversation_a_plot_and_a_timeline(command, model_dir, clip, tmp_path):
    picture = tmp_path / "answer.png"
    code, out, _ = command("ask", clip, "what?", "a?", "--follow", "--model", model_dir, "--plot", picture, *SHORT)
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and os.listdir(tmp_path) == ["answer.png"]
    assert out.count("Q  ") == 2 and "dense" in out and "saved" in out
    assert "everything was loaded" in out and str(picture) in out
    assert out.rindex("A  ") < out.index("saved") < out.index(str(picture))


def test_a_toy_says_once_what_it_does_not_know(command, model_dir, clip, tmp_path):
    toy = shutil.copytree(model_dir, tmp_path / "toy")
    known = {"forms": ["is there {second}?"], "names": ["dog"], "seconds": 60, "max_second": 99}
    (toy / "scope.json").write_text(json.dumps(known))
    asking = ("ask", clip, "--model", toy, *SHORT, "--json", "--quiet")
    code, out, error = command(*asking, "what?", "is there 7?", "--follow")
    assert code == 0 and json.loads(out)["toy"] and error.count("\n") == 1 and "toy" in error and "what?" in error
    generated = tmp_path / "generated.mp4"
    with av.open(str(clip)) as source, av.open(str(generated), "w") as target:
        target.metadata["comment"] = GENERATED
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    code, out, error = command("ask", generated, *asking[2:], "is there 7?")
    assert code == 0 and not json.loads(out)["toy"] and error == ""
    native = tmp_path / "native"
    converted = command("convert", toy, native, "--dtype", "float32", "--json", "--quiet")
    assert (
        json.loads(converted.out)["checkpoint"] == str(native)
        and json.loads((native / "scope.json").read_text()) == known
    )


@pytest.mark.slow
def test_the_attention_kernel_can_be_chosen_and_is_reported(command, model_dir, clip):
    arguments = ("ask", clip, "what?", "--model", model_dir, *SHORT)
    answers = {}
    for name in ("reference", "tpu"):
        code, out, error = command(*arguments, "--attention", name, "--json", "-v")
        assert code == 0 and f"attention: {name}" in error
        answers[name] = json.loads(out)["answers"][0]["answer"]
    assert answers["tpu"] == answers["reference"]
    code, _, error = command(*arguments, "--attention", "hopper")
    assert code == 2 and error.strip().startswith("vxl2: the Hopper kernel") and error.strip().count("\n") == 0


def test_a_memory_is_written_opened_and_asked(command, model_dir, clip, tmp_path):
    watch = ("watch", clip, "--out", tmp_path / "m", "--model", model_dir, "--max-frames", 8, "--json")
    code, out, _ = command(*watch)
    assert code == 0 and not json.loads(out)["memory"]["was_there"]
    code, out, _ = command(*watch)
    assert code == 0 and json.loads(out)["memory"]["was_there"]
    code, out, _ = command(*watch[:-1], "--dtype", "float32")
    assert code == 0 and f"--model {model_dir} --dtype float32" in out  # other weights could not read the memory
    ask = ("ask", "--memory", tmp_path / "m", "what?", "--model", model_dir, "--max-new-tokens", 2)
    code, out, _ = command(*ask, "--json")
    assert code == 0 and json.loads(out)["video"]["frames"] == 8
    code, out, error = command(*ask, "--max-frames", 4)
    assert code == 2 and out == "" and "--max-frames" in error and error.count("\n") == 1
    long = "What is the man doing? " * 100
    code, out, _ = command(*ask[:3], clip, "--json", *ask[4:], long, "Why\x1b[31m?\udcff")
    questions = [answer["question"] for answer in json.loads(out)["answers"]]
    assert code == 0 and questions == [str(clip), long, "Why\x1b[31m?\ufffd"] and "\x1b" not in out
    code, out, _ = command(*ask[:3], "Why\x1b[31m?", *ask[4:])
    assert code == 0 and "Why\\x1b[31m?" in out


def test_convert_writes_a_directory_that_answers_alike(command, model_dir, clip, tmp_path):
    target = tmp_path / "native"
    assert command("convert", model_dir, target, "--dtype", "float32").code == 0
    ask = ("ask", clip, "what?", "--json", *SHORT, "--model")
    native, original = (json.loads(command(*ask, model).out)["answers"] for model in (target, model_dir))
    assert [answer["answer"] for answer in native] == [answer["answer"] for answer in original]
    code, _, error = command("convert", model_dir, target)
    assert code == 2 and "exists" in error


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"video": "no/such.mp4"}, "no such file"),
        ({"--model": "no/such/dir"}, "no such checkpoint"),
        ({"--top-k": "-3"}, "top_k"),
        ({"--fps": "nan"}, "fps"),
        ({"--relevance": "magic"}, "magic"),
        ({"--plot": "no/such/folder/p.png"}, "no/such/folder/p.png"),
        ({"--plot": "p.txt"}, "plot"),
        ({"question": " "}, "empty"),
        ({"question": "is it? " * 20_000}, "32,768"),
        ({"--top-k": "1e18"}, "from 0 to 1,000,000, or all"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(command, model_dir, clip, change, key):
    options = {"--model": model_dir, **{name: value for name, value in change.items() if name.startswith("--")}}
    flags = [part for pair in options.items() for part in pair]
    code, out, error = command("ask", change.get("video", clip), change.get("question", "what?"), "--quiet", *flags)
    assert code == 2 and out == ""
    assert error.count("\n") == 1 and key in error


@pytest.mark.parametrize(
    ("error", "code", "key"),
    [
        (KeyboardInterrupt(), 130, "resumes"),
        (MemoryError(), 1, "--max-frames"),
        (RuntimeError("RESOURCE_EXHAUSTED: 8 GB"), 1, "--max-frames"),
    ],
)
def test_an_interrupt_and_too_little_memory_get_one_line(command, clip, tmp_path, monkeypatch, error, code, key):
    def fail(args):
        raise error

    monkeypatch.setattr("vxl2_jax.cli.options.load_model", fail)
    result = command("watch", clip, "--out", tmp_path / "m")
    assert result.code == code and key in result.err and result.err.count("\n") == 1


def test_an_unknown_option_shows_the_usage(command):
    code, _, error = command("ask", "clip.mp4", "what?", "--tpo-k", "3")
    assert code == 2 and "usage" in error


@pytest.mark.parametrize(
    "name", ["", "ask", "chat", "watch", "batch", "eval", "eval report", "eval compare", "plan", "convert"]
)
def test_help_teaches(command, name):
    code, out, _ = command(*name.split(), "--help")
    assert code == 0 and "vxl2" in out
    assert len(name.split()) == 2 or "example" in out
