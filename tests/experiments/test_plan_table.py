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
    row = found[plan_table.FRAMES.index(4096)]
    assert (row["frames"], row["tokens"]) == (4096, 157432)
    plan = plan_table.plan_for(4096, plan_table.DEVICES["a100-40"])
    assert row["devices"]["A100 40 GB"]["peak_bytes"] == plan.peak_bytes and not plan.host_bytes
    # More than a 24 GB card has: the dense level is in host memory.
    plan = plan_table.plan_for(4096, plan_table.DEVICES["l4"], place="host")
    assert row["devices"]["L4 24 GB"]["peak_bytes"] == plan.peak_bytes
    assert f"{plan.peak_bytes / 1e9:.1f} + {plan.host_bytes / 1e9:.1f} GB" in plan_table.table(found)


def test_machines_of_16_gb_have_a_plan_with_int8_weights(found):
    title, _, *lines = plan_table.table(found).splitlines()
    assert len(lines) == len(plan_table.FRAMES) and {line.count("|") for line in lines} == {title.count("|")}
    row = found[plan_table.FRAMES.index(1024)]["devices"]
    for heading in ("T4 16 GB, int8", "v5e 16 GB, int8"):
        assert row[heading]["fits"] and row[heading]["weights"] == "int8"
        assert row[heading]["weights_bytes"] < 0.55 * row["H200 141 GB"]["weights_bytes"]


def test_json_is_one_document(found, run_script):
    ended = run_script("plan_table", "--json")
    assert ended.code == 0 and json.loads(ended.out) == json.loads(json.dumps(found))
