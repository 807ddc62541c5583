"""What is installed is what is written down: pins, packages, data, the command."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vxl2_jax
from vxl2_jax.installed import jax_problem

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
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


def imported_by(code: str) -> set[str]:
    """The modules that a new process has imported after running `code`."""
    script = f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stderr.split())


@pytest.mark.parametrize("code", ["import vxl2_jax", "from vxl2_jax.cli import main; main([]); main([])"])
def test_importing_the_package_and_showing_help_do_without_jax(code):
    assert not imported_by(code) & {"jax", "numpy", "flax", "vxl2_jax.api"}


def test_loading_a_model_imports_only_what_it_needs():
    """Kernels for other devices, checkpoints of Orbax, plots, training and benchmarks are imported when they are used."""
    modules = imported_by("import vxl2_jax; vxl2_jax.load()")
    assert "vxl2_jax.api" in modules
    slow = ("jax.experimental.pallas", "orbax.checkpoint", "grain", "optax", "matplotlib", "vxl2_jax.training")
    assert not [name for name in modules if name.startswith((*slow, "vxl2_jax.evaluation", "vxl2_jax.cli"))]


def test_public_names_exist():
    assert vxl2_jax.__all__
    for name in vxl2_jax.__all__:
        assert getattr(vxl2_jax, name).__name__ == name


def test_there_is_one_version(project):
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "vxl2_jax.__version__"}
    assert f"\nversion: {vxl2_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_a_plugin_of_another_release_than_jaxlib_is_reported():
    installed = {"jax": "0.12.0.1", "jaxlib": "0.12.0", "jax-cuda12-pjrt": "0.7.2", "jax-cuda12-plugin": "0.7.2"}
    assert "jax[cuda12]==0.12.0.1" in jax_problem(installed.get)
    fitting = installed | {"jax-cuda12-pjrt": "0.12.0", "jax-cuda12-plugin": "0.12.0"}

    class Loaded:
        __version__ = "0.7.2"

    assert "restart" in jax_problem(fitting.get, Loaded)
    Loaded.__version__ = "0.12.0.1"
    assert jax_problem(fitting.get, Loaded) is None
