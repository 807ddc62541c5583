"""Figures: means over what they are about, and files that go on where they were."""

import json

import pytest

from vxl2_jax.errors import RequestError
from vxl2_jax.training import metrics
from vxl2_jax.training.metrics import Tally

STEPS = [
    {"loss": 1.0, "right": 1.0, "grad_norm": 2.0, "rate": 0.1, "tokens": 1.0},
    {"loss": 3.0, "right": 0.0, "grad_norm": 4.0, "rate": 0.2, "tokens": 3.0},
]


def counted(steps=STEPS):
    tally = Tally()
    for one in steps:
        tally.add(one, read=50, unread=1, seconds=0.5)
    return tally


def test_a_line_weighs_by_tokens_and_begins_anew():
    tally = counted()
    assert tally.line(2, "s") == {
        "step": 2,
        "stage": "s",
        "loss": 2.5,
        "right": 0.25,
        "grad_norm": 3.0,
        "rate": 0.2,
        "tokens": 4,
        "unread": 2,
        "tokens_per_s": 100.0,
        "seconds": 1.0,
    }
    tally.add(STEPS[0], 1, 0, 0.5)
    line = tally.line(3, "s")
    assert (line["loss"], line["unread"], line["seconds"]) == (1.0, 2, 1.5)


def test_a_tally_survives_json():
    tally = Tally(**json.loads(json.dumps(counted().as_data())))
    assert tally.line(2, "s") == counted().line(2, "s")


def lines(path, *steps, torn=""):
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps) + torn)


@pytest.mark.parametrize("torn", ["", "{", '{"step": 6, "lo'])
def test_lines_beyond_the_step_and_torn_ones_are_cut(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    lines(path, 1, 2, 3, 4, 5, torn=torn)
    with path.open("r+") as file:
        metrics.cut(file, path, 3)
        metrics.append(file, {"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("text", ["hello", "hello\n", '{"loss": 1}\n', "3\n"])
def test_another_file_is_left_alone(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with path.open("r+") as file, pytest.raises(RequestError, match="holds no metrics of a run"):
        metrics.cut(file, path, 0)
    assert path.read_text() == text
