"""`vxl2 eval` from the command line, on benchmarks of rendered clips: what it prints, and how it refuses."""

import json

import make_benchmark
import pytest
from evaluation.standin import StandIn

from vxl2_jax import cli, evaluation
from vxl2_jax.evaluation import run_folder, runner
from vxl2_jax.evaluation.settings import MODES, released

NAMES = tuple(evaluation.BENCHMARKS)
SMALL = ("--block-size", 1, "--prev-blocks", 1)
MODE_FLAGS = {"dense": (), "chunked": SMALL, "bilevel": (*SMALL, "--chunk-size", 1, "--top-k", 2)}


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """By benchmark, a folder of two clips with two questions each."""
    place = tmp_path_factory.mktemp("benchmarks")
    for name in NAMES:
        make_benchmark.make(
            name,
            place / name,
            videos=2,
            count=2,
            seconds=(24, 24),
            size=98,
            rate=2,
            form="task" if name == "video_mme" else "published",
        )
    return {name: place / name for name in NAMES}


def run(capsys, *args) -> tuple[int, str, str]:
    code = cli.main([str(arg) for arg in args])
    return code, *capsys.readouterr()


@pytest.fixture
def model(monkeypatch):
    """A stand-in for the model that the command line loads."""
    model = StandIn()
    monkeypatch.setattr(cli.options, "load_model", lambda args: model)
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs_in_every_mode_with_the_released_settings(
    capsys, data, tmp_path, monkeypatch, model, name, mode
):
    answer_all, given = model.answer_all, []
    monkeypatch.setattr(
        model, "answer_all", lambda jobs, **options: given.append(options) or answer_all(jobs, **options)
    )
    more = ("--subtitles", data[name] / "subtitle") if name == "video_mme" else ()
    code, told, error = run(
        capsys,
        "eval",
        "--benchmark",
        name,
        "--data",
        data[name],
        "--mode",
        mode,
        "--out",
        tmp_path,
        "--json",
        "--quiet",
        *more,
    )
    found = json.loads(told)
    assert code == 0 and error == "" and json.loads((tmp_path / "report.json").read_text()) == found
    assert found["complete"] and found["videos"] == 2 and found["failures"] == [] and found["changed"] == {}
    assert (options := given[0]) and (options["watch"], options["ask"]) == released(name, mode)
    assert len(model.prompts) == found["questions"] >= 3
    assert all(("subtitles are listed" in prompt) == bool(more) for prompt in model.prompts)
    assert (tmp_path / "report.png").exists() and (tmp_path / "report.md").exists()


def test_nano_runs_in_every_mode_and_the_runs_are_compared(capsys, data, tmp_path):
    rows = json.loads((data["mlvu"] / "json" / "1_generated.json").read_text())
    (tmp_path / "rows.json").write_text(
        json.dumps([*rows, {**rows[0], "video": "bad.mp4"}, {**rows[0], "video": "none.mp4"}])
    )
    (data["mlvu"] / "videos" / "bad.mp4").write_bytes(b"no video")
    for mode in MODES:
        code, told, error = run(
            capsys,
            "eval",
            "--benchmark",
            "mlvu",
            "--data",
            data["mlvu"],
            "--annotations",
            tmp_path / "rows.json",
            "--mode",
            mode,
            "--out",
            tmp_path / mode,
            "--max-frames",
            24,
            "--json",
            "--quiet",
            *MODE_FLAGS[mode],
        )
        found, records = json.loads(told), list(run_folder.read_records(tmp_path / mode).values())
        assert code == 0 and found["complete"] and "2 videos could not be watched" in error
        assert [failure["video"] for failure in found["failures"]] == ["bad.mp4", "none.mp4"]
        assert (found["saved"]["attention_percent"] > 10) == (mode != "dense")
        assert (found["saved"]["cache_percent"] > 10) == (mode == "bilevel")
        assert [record["frames"] for record in records[:2]] == [24, 24] and {"vision", "prefill"} <= found["time"][
            "stages_s"
        ].keys()
        assert records[1]["executables"] <= records[0]["executables"] + 2, (
            "a second video of the same length compiles anew"
        )
        assert any(row["response"] for record in records[:2] for row in record["answers"])
    code, told, _ = run(
        capsys, "eval", "compare", tmp_path / "dense", tmp_path / "bilevel", "--json", "--out", tmp_path / "c"
    )
    assert code == 0 and json.loads(told)["questions"] == found["questions"]
    assert json.loads((tmp_path / "c" / "compare.json").read_text()) == json.loads(told)
    code, told, _ = run(capsys, "eval", "report", tmp_path / "dense", tmp_path / "bilevel")
    assert code == 0 and [line for line in told.splitlines() if line.startswith("# ")][1].startswith(
        "# mlvu, bilevel: "
    )


def test_parts_are_told_and_the_last_one_writes_the_report(capsys, data, model, tmp_path):
    command = (
        "eval",
        "--benchmark",
        "lvbench",
        "--data",
        data["lvbench"],
        "--mode",
        "chunked",
        "--max-frames",
        12,
        "--quiet",
    )
    parts = (*command, "--out", tmp_path, "--processes", 2, "--process")
    code, told, _ = run(capsys, *parts, 1)
    assert code == 0 and "this part is done" in told and not (tmp_path / "report.json").exists()
    code, told, _ = run(capsys, *parts, 0)
    assert code == 0 and told.startswith("# lvbench, chunked: ") and "| max_frames | 600 | 12 |" in told
    assert (tmp_path / "report.json").exists() and len(model.watched) == 2


@pytest.mark.parametrize(
    "change, words",
    [
        ({"--data": "nowhere"}, "nowhere: no such folder"),
        ({"--data": None}, "eval needs --data"),
        ({"--subtitles": "."}, "--subtitles is for video_mme"),
        ({"--limit": 0}, "--limit must be at least 1"),
        ({"--annotations": "nothing.json"}, "nothing.json: no such file"),
        ({"--relevance": "magic"}, "unknown relevance 'magic'"),
        ({"--process": 0}, "give both"),
        ({"--model": "no/such/dir"}, "no such checkpoint"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(capsys, data, tmp_path, change, words):
    flags = {"--benchmark": "mlvu", "--data": data["mlvu"], "--mode": "bilevel", "--out": tmp_path / "out", **change}
    code, told, error = run(
        capsys, "eval", "--quiet", *(part for pair in flags.items() if pair[1] is not None for part in pair)
    )
    assert code == 2 and told == "" and error.count("\n") == 1 and words in error
    assert not (tmp_path / "out" / run_folder.RUN_FILE).exists()


def test_reports_and_comparisons_refuse_what_is_no_run(capsys, tmp_path):
    for part in (("report", tmp_path), ("compare", tmp_path, tmp_path)):
        code, told, error = run(capsys, "eval", *part)
        assert code == 2 and told == "" and "no run in it" in error and error.count("\n") == 1


def test_the_help_names_every_benchmark_and_mode_and_no_default_of_a_setting():
    parser = cli.build_parser()._subparsers._group_actions[0].choices["eval"]
    options = {action.dest: action for action in parser._actions}
    assert tuple(options["benchmark"].choices) == NAMES and tuple(options["mode"].choices) == tuple(MODES)
    watch, ask = released("mlvu", "bilevel")
    assert {name for name in watch | ask if options[name].default != "==SUPPRESS=="} == set()


@pytest.mark.parametrize("part", [[], ["report"], ["compare"]])
def test_help_teaches(capsys, part):
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", *part, "--help"])
    assert stop.value.code == 0 and "vxl2 eval" in capsys.readouterr().out


def test_subtitles_stand_in_the_prompt_of_their_video(data):
    benchmark = evaluation.get_benchmark("video_mme")
    items = runner.data.read(benchmark, data["video_mme"], subtitle_folder=data["video_mme"] / "subtitle")
    prompts = [benchmark.prompt(row) for item in items for row in runner._with_subtitles(item)]
    shown = [line for line in items[0].srt.splitlines() if "<font" in line]
    assert all(line.split(">")[1].split("<")[0] in prompts[0] for line in shown) and prompts[0].endswith(
        "The best answer is:"
    )
    without = runner._with_subtitles(runner.replace(items[0], srt=None))
    assert "No subtitles available" in benchmark.prompt(without[0])
