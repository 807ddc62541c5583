"""The tables of meshes are what the script prints."""

from pathlib import Path

import pytest

from experiments import mesh_tables
from vxl2_jax.tensor_parallel import MeshShape

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "table"), [("meshes", mesh_tables.mesh_table), ("scaling", mesh_tables.scaling_table)]
)
def test_the_page_has_the_table(name, table):
    page = (ROOT / "docs" / "how-to" / "devices.md").read_text()
    shown = page.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
    assert shown.strip() == table(), "paste what `python -m experiments.mesh_tables` prints"


def test_a_device_of_a_mesh_holds_its_part_of_the_video():
    one, four = (mesh_tables.planned(8000, "a100-80", MeshShape(1, n), "wide", "wide") for n in (1, 4))
    assert four.bytes["weights"] == one.bytes["weights"]
    # A quarter of the visual tokens and all timestamps, in whole strides.
    assert 0.25 < four.bytes["dense"] / one.bytes["dense"] < 0.4
    assert one.sent_bytes == {"model": 0, "sequence": 0} and four.sent_bytes["sequence"] > 0
    assert four.seconds(mesh_tables.DEVICES["a100-80"]) > one.seconds(mesh_tables.DEVICES["a100-80"]) / 4
