"""`vxl2 eval` from the command line, on benchmarks of rendered clips: what it prints, and how it refuses."""

import json
from dataclasses import replace

import pytest
from evaluation.standin import StandIn

from experiments.synthetic.__main__ import main as synthetic
from vxl2_jax import evaluation
from vxl2_jax.evaluation import run_folder, worker
from vxl2_jax.evaluation.settings import MODES, released

NAMES = tuple(evaluation.BENCHMARKS)
SMALL = ("--block-size", 1, "--prev-blocks", 1)
MODE_FLAGS = {"dense": (), "chunked": SMALL, "bilevel": (*SMALL, "--chunk-size", 1, "--top-k", 2)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """By benchmark, a folder of two clips with two questions each."""
    place = tmp_path_factory.mktemp("benchmarks")
    for name in NAMES:
        form = "task" if name == "video_mme" else "published"
        small = ["--videos", "2", "--questions", "2", "--seconds", "24", "24", "--size", "98", "--rate", "2"]
        synthetic(["benchmark", "--benchmark", name, "--out", str(place / name), "--form", form, *small])
    return {name: place / name for name in NAMES}


@pytest.fixture
def model(monkeypatch):
    """A stand-in for the model that the command line loads."""
    model = StandIn()
    monkeypatch.setattr("vxl2_jax.cli.options.load_model", lambda args: model)
    return model


def evaluate(command, name, data, mode, out, *more):
    arguments = ("--benchmark", name, "--data", data[name], "--mode", mode, "--out", out, "--quiet")
    return command("eval", *arguments, *more)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs_in_every_mode_with_the_released_settings(
    command, data, tmp_path, monkeypatch, model, name, mode
):
    answer_all, given = model.answer_all, []
    monkeypatch.setattr(
        model, "answer_all", lambda jobs, **options: given.append(options) or answer_all(jobs, **options)
    )
    more = ("--subtitles", data[name] / "subtitle") if name == "video_mme" else ()
    code, out, error = evaluate(command, name, data, mode, tmp_path, "--json", "--answer", "generate", *more)
    report = json.loads(out)
    assert code == 0 and error == "" and json.loads((tmp_path / "report.json").read_text()) == report
    assert report["complete"] and report["videos"] == 2 and report["failures"] == [] and report["changed"] == {}
    assert (options := given[0]) and (options["watch"], options["ask"]) == released(name, mode)
    assert len(model.prompts) == report["questions"] >= 3
    assert all(("subtitles are listed" in prompt) == bool(more) for prompt in model.prompts)
    assert (tmp_path / "report.png").exists() and (tmp_path / "report.md").exists()


def test_options_are_scored_by_likelihood_by_default_for_nano_only(command, data, model, tmp_path):
    for folder, name in (("nano", "nano"), ("other", "some/model")):
        code, out, _ = evaluate(command, "lvbench", data, "dense", tmp_path / folder, "--model", name, "--json")
        assert code == 0 and json.loads(out)["settings"]["answer"] == ("likelihood", "generate")[folder == "other"]


@pytest.mark.slow
def test_nano_runs_in_every_mode_and_the_runs_are_compared(command, data, tmp_path):
    rows = json.loads((data["mlvu"] / "json" / "1_generated.json").read_text())
    (tmp_path / "rows.json").write_text(
        json.dumps([*rows, {**rows[0], "video": "bad.mp4"}, {**rows[0], "video": "none.mp4"}])
    )
    (data["mlvu"] / "videos" / "bad.mp4").write_bytes(b"no video")
    for mode in MODES:
        more = ("--annotations", tmp_path / "rows.json", "--max-frames", 24, "--json", *MODE_FLAGS[mode])
        code, out, error = evaluate(command, "mlvu", data, mode, tmp_path / mode, *more)
        report, records = json.loads(out), list(run_folder.read_records(tmp_path / mode).values())
        assert code == 0 and report["complete"] and "2 videos failed" in error
        assert [failure["video"] for failure in report["failures"]] == ["bad.mp4", "none.mp4"]
        assert (report["saved"]["attention_percent"] > 10) == (mode != "dense")
        assert (report["saved"]["cache_percent"] > 10) == (mode == "bilevel")
        assert [record["frames"] for record in records[:2]] == [24, 24]
        assert {"vision", "prefill"} <= report["time"]["stages_s"].keys()
        assert records[1]["executables"] <= records[0]["executables"] + 2, "a second video of the same length compiles"
        assert any(row["response"] for record in records[:2] for row in record["answers"])
    runs = tmp_path / "dense", tmp_path / "bilevel"
    code, out, _ = command("eval", "compare", *runs, "--json", "--out", tmp_path / "c")
    assert code == 0 and json.loads(out)["questions"] == report["questions"]
    assert json.loads((tmp_path / "c" / "compare.json").read_text()) == json.loads(out)
    code, out, _ = command("eval", "report", *runs)
    titles = [line for line in out.splitlines() if line.startswith("# ")]
    assert code == 0 and titles[1].startswith("# mlvu, bilevel: ")


@pytest.mark.parametrize(
    "change, key",
    [
        ({"--data": "nowhere"}, "nowhere: no such folder"),
        ({"--data": None}, "--data"),
        ({"--subtitles": "."}, "--subtitles"),
        ({"--subtitles": ".", "--benchmark": "video_mme", "--data": "DATA"}, "--answer generate"),
        ({"--limit": 0}, "limit must be"),
        ({"--annotations": "nothing.json"}, "nothing.json: no such file"),
        ({"--relevance": "magic"}, "'magic'"),
        ({"--fps": -1}, "fps"),
        ({"--workers": 0}, "workers must be"),
        ({"--model": "no/such/dir"}, "no such checkpoint"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(command, data, tmp_path, change, key):
    flags = {"--benchmark": "mlvu", "--data": data["mlvu"], "--mode": "bilevel", "--out": tmp_path / "out", **change}
    if flags["--data"] == "DATA":
        flags["--data"] = data["video_mme"]
    given = [part for pair in flags.items() if pair[1] is not None for part in pair]
    code, out, error = command("eval", "--quiet", *given)
    assert code == 2 and out == "" and error.count("\n") == 1 and key in error
    assert not (tmp_path / "out" / run_folder.RUN_FILE).exists()


def test_reports_and_comparisons_refuse_what_is_no_run(command, tmp_path):
    for part in (("report", tmp_path), ("compare", tmp_path, tmp_path)):
        code, out, error = command("eval", *part)
        assert code == 2 and out == "" and "no run in it" in error and error.count("\n") == 1


def test_subtitles_stand_in_the_prompt_of_their_video(data):
    benchmark = evaluation.get_benchmark("video_mme")
    items = worker.data.read(benchmark, data["video_mme"], subtitle_folder=data["video_mme"] / "subtitle")
    prompts = [benchmark.prompt(row) for item in items for row in worker._with_subtitles(item)]
    shown = [line for line in items[0].srt.splitlines() if "<font" in line]
    assert all(line.split(">")[1].split("<")[0] in prompts[0] for line in shown) and prompts[0].endswith(
        "The best answer is:"
    )
    without = worker._with_subtitles(replace(items[0], srt=None))
    assert "No subtitles available" in benchmark.prompt(without[0])
