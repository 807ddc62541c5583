"""The table of a million hours is what the script prints."""

from pathlib import Path

from experiments import plan_table, scale_table

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- scale table -->", "<!-- /scale table -->"


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "how-to" / "many-videos.md").read_text()
    assert page.count(BEGIN) == page.count(END) == 1, f"docs/how-to/many-videos.md lacks {BEGIN} … {END}"
    shown = page.split(BEGIN)[1].split(END)[0]
    assert shown.strip() == scale_table.table(), "paste what `python -m experiments.scale_table` prints"


def test_figures_are_those_of_the_plan_and_of_the_format():
    found = scale_table.scale("a100-80", "wide")
    plan = plan_table.plan_for(3600, plan_table.DEVICES["a100-80"])
    assert found.video_s == plan.seconds(plan_table.DEVICES["a100-80"])
    assert abs(found.hours * 3600 * 1000 / 1e6 - found.video_s) < 1e-9 and abs(found.rate * found.video_s - 1000) < 1e-9
    # Keys and values of 28 layers, 4 heads and 128 numbers of 2 bytes.
    rows = plan.layout.length + plan.layout.sparse_length(4)
    assert found.memory_bytes == 2 * 28 * 4 * 128 * 2 * rows
    assert found.memory_bytes < plan.bytes["dense"] + plan.bytes["sparse"] < 1.1 * found.memory_bytes
    # 30 frames of 0.92 million pixels decoded and one converted a second.
    assert abs(found.cores * found.video_s - 3600 * 1.28 * 0.72 * (30 * 2 + 12) / 1000) < 1e-6
