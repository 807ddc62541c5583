"""The tables of nano in the documentation are those of the committed reports."""

import json
from pathlib import Path

import pytest

import vxl2_jax as vxl2
from experiments.studies import nano, nano_tables

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- nano table -->", "<!-- /nano table -->"


@pytest.fixture(scope="module")
def reports():
    files = sorted((ROOT / "experiments" / "results" / "nano").glob("seed*.json"))
    assert len(files) >= 3
    return [json.loads(file.read_text()) for file in files]


def test_the_page_has_the_tables(reports):
    page = (ROOT / "docs" / "results" / "nano.md").read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    assert page.split(BEGIN)[1].split(END)[0].strip() == nano_tables.tables(reports)


def test_the_reports_are_of_the_model_in_the_package(reports):
    assert {report["fingerprint"] for report in reports} == {vxl2.load("nano").fingerprint}
    assert len({report["settings"]["seed"] for report in reports}) == len(reports)
    assert all(set(report["settings"]) == set(nano.SETTINGS) for report in reports)


def test_counts_are_summed_over_seeds():
    parts = [{"accuracy": 50.0, "questions": 10}, {"accuracy": 100.0, "questions": 30}, {"questions": 0}]
    assert nano_tables.pooled(parts) == (35, 40)
    assert nano_tables.rate(parts).startswith("87.5 % (")


def test_differences_are_weighted_by_their_questions():
    alone = {"points": -2.0, "interval": [-4.0, 0.0], "questions": 100}
    assert nano_tables.difference([alone]) == "-2.0 (-4.0 to +0.0)"
    other = {"points": 4.0, "interval": [2.0, 6.0], "questions": 300}
    # 400 questions: mean (−200 + 1200) / 400; half-width √(200² + 600²) / 400.
    assert nano_tables.difference([alone, other]) == "+2.5 (+0.9 to +4.1)"


@pytest.mark.parametrize("text", ["62:x", "62:1", "0", "x", "-1"])
def test_bad_shares_are_refused(text):
    with pytest.raises(vxl2.RequestError, match="--shares"):
        nano.parse_share(text, 8)


@pytest.mark.parametrize("text", ["32", "16-64", "64-32", "64-2000", "a-b"])
def test_bad_ranges_are_refused(text):
    with pytest.raises(vxl2.RequestError, match="--ranges"):
        nano.parse_range(text)


def test_a_share_has_its_mode_and_compression():
    assert nano.parse_share("62", 8) == ("bilevel_62", 62, 8)
    assert nano.parse_share("62:2", 8) == ("bilevel_62_by2", 62, 2)
