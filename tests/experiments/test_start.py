"""How experiments start and end: usage lines, exit codes, closed pipes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARGPARSE = """
import argparse
from experiments import start
def main():
    argparse.ArgumentParser().parse_args()
    print("line\\n" * 100_000)
    return 3
if __name__ == "__main__":
    start.run(main)
"""
ABSL = """
from absl import flags
from experiments import start
def define_flags():
    flags.DEFINE_integer("size", 1, "a size")
def main(argv):
    print("line\\n" * 100_000)
    return 3
if __name__ == "__main__":
    start.run(main, define_flags)
"""


@pytest.fixture(params=[ARGPARSE, ABSL], ids=["argparse", "absl"])
def run(request, tmp_path):
    """Runs `python -m example` with arguments, whose output may be closed by its reader after a line."""
    (tmp_path / "example.py").write_text(request.param)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}

    def run(*arguments: str, closed: bool = False) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "example", *arguments]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            if closed:
                process.stdout.readline()
                process.stdout.close()
                return process.wait(60), "", process.stderr.read()
            out, error = process.communicate(timeout=60)
            return process.returncode, out, error

    return run


def test_help_is_a_success_and_usage_names_the_module(run):
    code, out, error = run("--help")
    assert code == 0 and not error
    code, _, error = run("--sizes=x")
    assert code not in (0, 3) and "Traceback" not in error
    assert "python -m example" in out + error


def test_the_exit_code_is_what_main_returns_unless_nobody_reads(run):
    assert run()[0] == 3
    assert run(closed=True) == (141, "", "")


def test_importing_modules_defines_no_flags():
    """A process has absl's flags once: modules that define them when they are imported collide, in whatever order tests run."""
    names = sorted(
        f"experiments.{path.stem}" for path in (ROOT / "experiments").glob("*.py") if path.stem != "__init__"
    )
    code = f"""
import importlib
from absl import flags
for name in {names}:
    importlib.import_module(name)
print(*(name for name in flags.FLAGS if flags.FLAGS.find_module_defining_flag(name).startswith("experiments")))
"""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert (ended.returncode, ended.stdout.split()) == (0, []), ended.stderr
