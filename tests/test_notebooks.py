"""The notebooks in docs/notebooks: kept without outputs, with options that exist, and running from top to bottom."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from vxl2_jax.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
MAX_CELL_S = 120
FILLED_IN = {"model.weights": "int8", "model.dtype.name": "float32"}
"""Values for what a command takes from a notebook's variables, where any text will not do."""


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def commands(notebook: Any) -> list[list[str]]:
    """The commands of a notebook as words: those of cells for the shell, and those that are called command."""
    found = []
    for code in code_of(notebook):
        if code.startswith("%%bash\n"):
            found += [line.partition(" > ")[0] for line in code.replace("\\\n", " ").splitlines()[1:]]
        found += re.findall(r'^command = f?"(.+)"$', code, re.MULTILINE)
    return [shlex.split(re.sub(r"{(.+?)}", lambda name: FILLED_IN.get(name[1], "x"), line)) for line in found]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_notebooks_are_valid_and_have_no_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not [cell for cell in code if cell.outputs or cell.execution_count]
    for cell in code:
        compile(TransformerManager().transform_cell(cell.source), str(path), "exec")
        # Its command may fail without an error, and runs in a terminal, so that progress bars fill the output.
        assert not re.search(r"^ *!", cell.source, re.MULTILINE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_every_code_cell_is_introduced_by_text(path):
    kinds = [cell.cell_type for cell in read(path).cells]
    assert kinds[0] == "markdown" and ("code", "code") not in pairwise(kinds)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_commands_have_options_that_exist(path, monkeypatch):
    from experiments.bench import __main__ as bench
    from experiments.synthetic import __main__ as synthetic

    found = commands(read(path))
    monkeypatch.setattr(synthetic.COMMANDS["benchmark"], "run", lambda flags: "not run")
    for words in found:
        if words[0] == "vxl2":
            build_parser().parse_args(words[1:])
        elif words[:3] == ["python", "-m", "experiments.synthetic"]:
            synthetic.main(words[3:])
        elif words[:3] == ["python", "-m", "experiments.bench"]:
            bench.build_parser().parse_args(words[3:])
        else:
            assert words[0] == "cd"
    assert found


def test_all_notebooks_are_listed():
    page = (ROOT / "docs" / "how-to" / "notebooks.md").read_text(encoding="utf-8")
    listed = {ROOT / "docs" / "notebooks" / name for name in re.findall(r"\(\.\./notebooks/(.+?\.ipynb)\)", page)}
    assert NOTEBOOKS and listed == set(NOTEBOOKS)


OUTPUTS = {
    "ask_a_video": ["a butterfly", "at 36 seconds", "True\n", ".memory"],
    "kernels": ["tpu       (interpreted)", "ampere    (interpreted)", "not measured"],
    "mini_benchmark": ["8 questions:", "keys and values saved"],
}
"""What the outputs of a notebook must contain on a CPU."""
SMALLER = {"mini_benchmark": {"--videos 8 --questions 8 --seconds 64 64": "--videos 2 --questions 4 --seconds 32 32"}}
"""Parts of a notebook that would take minutes, and what is run instead."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_notebooks_run_on_a_cpu(path, tmp_path, monkeypatch):
    """From top to bottom with nano, without errors and warnings, and no cell for too long."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    text = path.read_text(encoding="utf-8")
    for part, smaller in SMALLER.get(path.stem, {}).items():
        assert part in text
        text = text.replace(part, smaller)
    notebook, place = nbformat.reads(text, as_version=4), {"metadata": {"path": tmp_path}}
    NotebookClient(notebook, timeout=MAX_CELL_S, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    text = "".join(output.get("text") or output.data["text/plain"] for output in outputs)
    assert not [wanted for wanted in OUTPUTS[path.stem] if wanted not in text]
