"""Metrics: weighted means, and files that a resumed run continues."""

import json

import pytest

from vxl2_jax.errors import RequestError
from vxl2_jax.training import metrics
from vxl2_jax.training.metrics import Tally

STEPS = [
    {"loss": 1.0, "accuracy": 1.0, "grad_norm": 2.0, "learning_rate": 0.1, "tokens": 1.0},
    {"loss": 3.0, "accuracy": 0.0, "grad_norm": 4.0, "learning_rate": 0.2, "tokens": 3.0},
]


def counted(steps=STEPS):
    tally = Tally()
    for one in steps:
        tally.add(one, tokens_read=50, skipped=1, seconds=0.5)
    return tally


def test_a_line_is_weighted_by_tokens_and_starts_the_next_window():
    tally = counted()
    assert tally.line(2, "s") == {
        "step": 2,
        "stage": "s",
        "loss": 2.5,
        "accuracy": 0.25,
        "grad_norm": 3.0,
        "learning_rate": 0.2,
        "tokens": 4,
        "skipped": 2,
        "tokens_per_s": 100.0,
        "seconds": 1.0,
    }
    tally.add(STEPS[0], 1, 0, 0.5)
    line = tally.line(3, "s")
    assert (line["loss"], line["skipped"], line["seconds"]) == (1.0, 2, 1.5)


def test_a_tally_survives_json():
    tally = Tally(**json.loads(json.dumps(counted().as_data())))
    assert tally.line(2, "s") == counted().line(2, "s")


def lines(path, *steps, incomplete=""):
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps) + incomplete)


@pytest.mark.parametrize("incomplete", ["", "{", '{"step": 6, "lo'])
def test_later_and_incomplete_lines_are_removed(tmp_path, incomplete):
    path = tmp_path / "metrics.jsonl"
    lines(path, 1, 2, 3, 4, 5, incomplete=incomplete)
    with path.open("r+") as file:
        metrics.truncate(file, path, 3)
        metrics.append(file, {"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("text", ["hello", "hello\n", '{"loss": 1}\n', "3\n"])
def test_any_other_file_is_not_changed(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with path.open("r+") as file, pytest.raises(RequestError, match="not a metrics file"):
        metrics.truncate(file, path, 0)
    assert path.read_text() == text
