"""What is installed is what is written down: pins, packages, data, the command."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_every_dependency_has_one_pin_that_meets_its_bound(project, pins, python):
    here = [pin for pin in pins if not pin.marker or pin.marker.evaluate({"python_version": python})]
    names = [pin.name for pin in here]
    assert len(names) == len(set(names))
    for text in project["project"]["dependencies"] + project["project"]["optional-dependencies"]["test"]:
        wanted = Requirement(text)
        (pin,) = [pin for pin in here if pin.name == wanted.name]
        (exact,) = pin.specifier
        assert exact.operator == "==" and wanted.specifier.contains(exact.version), text


def test_every_folder_of_code_is_a_package():
    """Folders without __init__.py are left out of a wheel without a word."""
    code = [file for package in ("vxl2_jax", "pallas_kernels") for file in (ROOT / package).rglob("*.py")]
    assert code
    assert not [file.parent for file in code if not (file.parent / "__init__.py").exists()]


def test_every_asset_is_package_data(project):
    patterns = project["tool"]["setuptools"]["package-data"]["vxl2_jax"]
    covered = {file for pattern in patterns for file in (ROOT / "vxl2_jax").glob(pattern)}
    assets = {file for file in (ROOT / "vxl2_jax" / "assets").rglob("*") if file.is_file() and file.suffix != ".md"}
    assert assets <= covered


def test_the_help_of_make_names_every_target():
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)) == set(phony.split())
