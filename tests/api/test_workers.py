"""Workers of `vxl2 batch` and `vxl2 eval`: two processes give the rows, the report and the memories of one."""

import json
import os
import shutil

import pytest

from experiments.synthetic.__main__ import main as synthetic
from vxl2_jax import ingest
from vxl2_jax.fleet.places import child_environment
from vxl2_jax.storage import catalogue

from .conftest import SHORT


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if not key.endswith(("_s", "timings"))}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def rows(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted((without_times(row) for row in found), key=lambda row: json.dumps(row["job"]))


@pytest.fixture
def jobs(clip, tmp_path):
    for name in "abc":
        shutil.copy(clip, tmp_path / f"{name}.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    path = tmp_path / "jobs.jsonl"
    lines = [{"video": f"{name}.mp4", "questions": ["is there 7?"]} for name in ("a", "broken", "b", "c")]
    path.write_text("".join(json.dumps(line) + "\n" for line in [lines[0], "no job", *lines[1:]]))
    return path


@pytest.mark.slow
def test_two_workers_on_two_devices_give_the_rows_of_one_process(command, model_dir, jobs, tmp_path, monkeypatch):
    arguments = ("batch", jobs, "--model", model_dir, *SHORT, "--json", "--quiet")
    assert command(*arguments, "--out", tmp_path / "one.jsonl")[0] == 2
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    code, out, error = command(*arguments, "--out", tmp_path / "two.jsonl", "--workers", "auto")
    assert code == 2 and "2 of 5 jobs failed" in error
    assert rows(tmp_path / "two.jsonl") == rows(tmp_path / "one.jsonl")
    did = json.loads(out)["fleet"]
    assert did["videos"] == 4 and [one["device"][:6] for one in did["workers"].values()] == ["cpu 0,", "cpu 1,"]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """A benchmark of three clips with two questions each, one of them broken."""
    place = tmp_path_factory.mktemp("benchmark")
    small = ["--videos", "3", "--questions", "2", "--seconds", "24", "24", "--size", "98", "--rate", "2"]
    synthetic(["benchmark", "--benchmark", "mlvu", "--out", str(place), "--form", "published", *small])
    sorted((place / "videos").rglob("*.mp4"))[1].write_bytes(b"no video")
    return place


@pytest.fixture
def ray_here():
    """A Ray cluster with two cores, which commands of this process use."""
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    paths = {"env_vars": {"PYTHONPATH": child_environment()["PYTHONPATH"]}}
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's name) a worker that starts would wait for every other process
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=paths)
    yield
    ray.shutdown()


def results(folder) -> tuple[str, list]:
    """(the report but for its measured times, the records but for theirs)."""
    report = json.loads((folder / "report.json").read_text())
    assert report.pop("time")["wall_s"] > 0
    lines = (folder / "rows.0-of-1.jsonl").read_text().splitlines()
    records = sorted((without_times(json.loads(line)) for line in lines), key=lambda one: one["index"])
    for record in records:
        record.pop("executables", None)
    return json.dumps(report), records


@pytest.mark.slow
@pytest.mark.parametrize("workers", [("--workers", 2), ("--ray", "--workers", 2)], ids=["pool", "ray"])
def test_workers_with_memories_give_the_report_of_one_process(
    command, benchmark, tmp_path, monkeypatch, request, workers
):
    if "--ray" in workers:
        request.getfixturevalue("ray_here")
    memories = "--memories", tmp_path / "memories"
    small = ("--chunk-size", 1, "--top-k", 1, "--max-frames", 12)

    def evaluate(name, *more):
        given = ("--benchmark", "mlvu", "--data", benchmark, "--mode", "bilevel", "--out", tmp_path / name, "--quiet")
        code, _, error = command("eval", *given, *small, *more)
        assert code == 0 and "1 videos failed" in error, error
        return results(tmp_path / name)

    alone = evaluate("alone")
    assert evaluate("workers", *workers, *memories) == alone
    found = list(catalogue.entries(tmp_path / "memories"))
    assert [entry.state for entry in found] == [catalogue.OK] * 2
    (did,) = (json.loads(line) for line in (tmp_path / "workers" / "fleet.jsonl").read_text().splitlines())
    assert did["videos"] == 3 and did["retries"] == 0
    monkeypatch.setattr(ingest, "_watch_strides", lambda *_, **__: pytest.fail("watched"))
    assert evaluate("again", *memories) == alone
    assert list(catalogue.entries(tmp_path / "memories")) == found
