"""The tables of nano are what the script makes of the kept reports."""

import json
from pathlib import Path

import pytest

import vxl2_jax as vxl2
from experiments import nano_table

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- nano table -->", "<!-- /nano table -->"


@pytest.fixture(scope="module")
def reports():
    files = sorted((ROOT / "experiments" / "results" / "nano").glob("seed*.json"))
    assert len(files) >= 3, "three seeds at least are kept"
    return [json.loads(file.read_text()) for file in files]


def test_the_page_has_the_tables(reports):
    page = (ROOT / "docs" / "results" / "nano.md").read_text()
    assert page.count(BEGIN) == page.count(END) == 1, f"docs/results/nano.md lacks {BEGIN} … {END}"
    shown = page.split(BEGIN)[1].split(END)[0]
    assert shown.strip() == nano_table.tables(reports), "paste what `python -m experiments.nano_table` prints"


def test_the_reports_are_of_the_model_in_the_package(reports):
    assert {report["fingerprint"] for report in reports} == {vxl2.load("nano").fingerprint}
    assert len({report["settings"]["seed"] for report in reports}) == len(reports)


def test_counts_are_added_up_over_seeds():
    parts = [{"accuracy": 50.0, "questions": 10}, {"accuracy": 100.0, "questions": 30}, {"questions": 0}]
    assert nano_table.pooled(parts) == (35, 40)
    assert nano_table.rate(parts).startswith("87.5 % (")


def test_differences_are_weighted_by_their_questions():
    alone = {"points": -2.0, "interval": [-4.0, 0.0], "questions": 100}
    assert nano_table.difference([alone]) == "-2.0 (-4.0 to +0.0)"
    other = {"points": 4.0, "interval": [2.0, 6.0], "questions": 300}
    # 400 questions: mean (−200 + 1200) / 400; half-width √(200² + 600²) / 400.
    assert nano_table.difference([alone, other]) == "+2.5 (+0.9 to +4.1)"


def test_modes_have_readable_names():
    assert nano_table.spoken("bilevel_35") == "bi-level 35 %"
    assert nano_table.spoken("bilevel_62_by2") == "bi-level 62 %, pooled by 2"


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--shares=62:x", "--shares: '62:x'"),
        ("--shares=62:1", "--shares: '62:1'"),
        ("--shares=0", "--shares: 0"),
        ("--ranges=32", "--ranges: '32'"),
    ],
)
def test_bad_flags_of_the_evaluation_end_with_one_line(run_script, flag, named):
    refused(run_script("evaluate_nano", flag), named)


def refused(ended, named: str) -> None:
    assert ended.code and ended.err.strip().splitlines()[-1].startswith(f"evaluate_nano: {named}")
    assert "Traceback" not in ended.err


def test_a_report_of_other_settings_is_kept_and_not_added_to(run_script, reports, tmp_path):
    out = tmp_path / "report.json"
    for text in ("[]", json.dumps(reports[0] | {"fingerprint": "0"})):
        out.write_text(text)
        refused(run_script("evaluate_nano", f"--out={out}"), f"--out {out}: ")
        assert out.read_text() == text


def test_a_complete_report_is_printed_again_without_asking(run_script, reports, tmp_path, monkeypatch):
    monkeypatch.setattr(vxl2.Model, "watch", lambda *_, **__: pytest.fail("a video is watched"))
    out, settings = tmp_path / "report.json", reports[0]["settings"]
    out.write_text(json.dumps(reports[0]))
    flags = [f"--out={out}", "--json", f"--seed={settings['seed']}", f"--questions={settings['questions']}"]
    ended = run_script("evaluate_nano", *flags)
    assert ended.code == 0 and json.loads(ended.out) == reports[0]
