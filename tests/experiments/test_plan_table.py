"""The table of what videos cost is what the script prints."""

import json
from pathlib import Path

import pytest

from experiments import plan_table

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- plan table -->", "<!-- /plan table -->"


@pytest.fixture(scope="module")
def found():
    return plan_table.rows()


def test_the_page_has_the_table(found):
    page = (ROOT / "docs" / "results" / "speed.md").read_text()
    assert page.count(BEGIN) == page.count(END) == 1, f"docs/results/speed.md lacks {BEGIN} … {END}"
    shown = page.split(BEGIN)[1].split(END)[0]
    assert shown.strip() == plan_table.table(found), "paste what `python -m experiments.plan_table` prints"


def test_a_row_is_the_plan_of_its_length(found):
    row = found[plan_table.FRAMES.index(2048)]
    assert (row["frames"], row["tokens"]) == (2048, 78584)
    plan = plan_table.plan_for(2048, plan_table.DEVICES["l4"])
    assert row["devices"]["L4 24 GB"]["peak_bytes"] == plan.peak_bytes
    assert f"– ({plan.peak_bytes / 1e9:.1f} GB)" in plan_table.table(found)  # more than a 24 GB card has


def test_machines_without_room_for_the_weights_are_named_so(found):
    title, _, *lines = plan_table.table(found).splitlines()
    assert title.endswith("| T4 16 GB, v5e 16 GB |")
    assert len(lines) == len(plan_table.FRAMES) and all(line.endswith("– (weights alone: 16.2 GB) |") for line in lines)


def test_json_is_one_document(found, run_script):
    ended = run_script("plan_table", "--json")
    assert ended.code == 0 and json.loads(ended.out) == json.loads(json.dumps(found))
