"""Runs the modules of experiments/ in the process of the tests."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from absl import app
from absl.testing import flagsaver

ROOT = Path(__file__).resolve().parents[2]
app.define_help_flags()  # now, so that they do not end with the first script


class Ended(NamedTuple):
    """What a script left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs a module of experiments/, by name, with command-line arguments, as `python -m` would."""

    def run(name: str, *arguments: str) -> Ended:
        code: int | str | None = 0
        capsys.readouterr()
        with monkeypatch.context() as patch, flagsaver.flagsaver():  # also removes the flags that are defined inside
            patch.setattr(sys, "argv", [name, *arguments])
            try:
                runpy.run_module(f"experiments.{name}", run_name="__main__")
            except SystemExit as end:
                code = end.code
        out, err = capsys.readouterr()
        if isinstance(code, str):  # what sys.exit prints
            code, err = 1, f"{err}{code}\n"
        return Ended(code or 0, out, err)

    return run
