"""`vxl2 batch --workers`: two processes with nano give the rows of one."""

import json
import shutil

import pytest

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
