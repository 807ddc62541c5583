"""Build environments from nothing, install the package into each as a wheel, and test it there.

    python tests/environments.py                 # all of them (make test-environments)
    python tests/environments.py colab floors    # some of them

The wheel is built from the source distribution. Tests run in another folder, without the sources of the package. A table
with versions, result and seconds is printed at the end; logs and environments stay in build/environments. An environment
whose Python is not on this machine is not run, and the table says so. Exit code 1 if anything failed.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "environments"
SHOWN = ("jax", "flax", "numpy", "huggingface-hub", "av")
TESTS = ("tests/api/test_api.py", "tests/storage", "tests/video/test_reader.py", "tests/video/test_preprocess.py")
QUESTION, ANSWER = "What appears at 40 seconds?", "butterfly"
# What an upgrade of jax may change.
JAX_PARTS = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt", "ml-dtypes", "ml_dtypes")


class Failed(Exception):
    """A check of an environment that did not hold."""


class Environment(NamedTuple):
    """A Python, what is installed first, and how the package is installed.

    kept: what was installed first must not change, except for JAX's parts. dry: extras that must resolve here. more: tests
    besides those that run in every environment.
    """

    python: str
    first: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    extra: str = "test"
    kept: bool = False
    dry: tuple[str, ...] = ()
    more: tuple[str, ...] = ()


def floors() -> tuple[str, ...]:
    """Every dependency at its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = [text.replace(">=", "==") for text in project["dependencies"]]
    return (*lowest, next(text for text in lowest if text.startswith("jax==")).replace("jax==", "jaxlib=="))


# Colab's of 2026-08. Of jax[cuda12], NVIDIA's libraries (3 GB) are left out: they do not depend on JAX's release.
COLAB = (
    *("jax==0.7.2", "jax-cuda12-plugin==0.7.2", "numpy==2.1.3", "pillow==11.3.0", "matplotlib==3.10.0"),
    *("rich==13.9.4", "huggingface_hub==1.27.0", "tokenizers==0.22.2", "transformers==5.15", "gradio==6.24"),
)
ENVIRONMENTS = {
    "pinned": Environment("3.12", beside=("-r", str(ROOT / "requirements.txt"))),
    "floors": Environment("3.11", beside=floors()),
    "newest": Environment("3.13", dry=("cuda12", "cuda13", "tpu")),
    # jax 0.12 requires numpy 2.2, which is newer than Colab's: the bound is the command of docs/index.md.
    "colab": Environment(
        "3.13", first=COLAB, beside=("jax<0.12",), kept=True, dry=("cuda12",), more=("tests/test_notebooks.py",)
    ),
    "lmms": Environment("3.11", extra="test,lmms"),
}


def find_python(version: str) -> str | None:
    """An interpreter of this version that can make environments, or None."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for candidate in (f"python{version}", *sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python"), reverse=True)):
        probe = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        try:
            run = subprocess.run([candidate, "-c", probe], capture_output=True, text=True)
        except OSError:
            continue
        if run.returncode == 0 and run.stdout.strip() == version:
            return candidate
    return None


class Folder:
    """An environment's folder with its log, in which commands run."""

    def __init__(self, name: str, python: str) -> None:
        self.path = BUILD / name
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        self.bin = self.path / "venv" / "bin"
        self.log = self.path / "log.txt"
        self.run(python, "-m", "venv", self.path / "venv")

    def run(self, *command: object, error: str | None = None) -> str:
        """Run a command in this folder; returns its standard output. Raises Failed with its last lines."""
        words = [str(word) for word in command]
        hidden = {"PYTHONPATH": "", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
        run = subprocess.run(words, cwd=self.path, env=os.environ | hidden, capture_output=True, text=True)
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(words)}\n{run.stdout}{run.stderr}\n")
        if run.returncode:
            raise Failed(error or f"{' '.join(words)[:90]} … failed: {(run.stderr or run.stdout).strip()[-1500:]}")
        return run.stdout

    def pip(self, *arguments: object) -> str:
        """Run `pip install`. Bytecode is compiled on import: most of it is never needed."""
        return self.run(self.bin / "python", "-m", "pip", "install", "-q", "--no-compile", *arguments)

    def versions(self) -> dict[str, str]:
        """The installed packages."""
        listed = self.run(self.bin / "python", "-m", "pip", "list", "--format=freeze")
        return dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)


def build() -> Path:
    """Build and check the source distribution, and the wheel from it. Returns the wheel."""
    folder = Folder("package", sys.executable)
    folder.pip("build", "twine")
    # A copy: building writes next to the sources.
    skipped = shutil.ignore_patterns(".git", ".venv*", "build", "runs", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder.path / "source", ignore=skipped)
    folder.run(folder.bin / "python", "-m", "build", "--outdir", "dist", folder.path / "source")
    made = sorted((folder.path / "dist").iterdir())
    folder.run(folder.bin / "python", "-m", "twine", "check", "--strict", *made)
    return next(path for path in made if path.suffix == ".whl")


def check(name: str, environment: Environment, python: str, wheel: Path) -> tuple[str, dict[str, str]]:
    """Build one environment and test the package in it. Returns (result in words, versions)."""
    folder, notes = Folder(name, python), []
    if environment.first:
        folder.pip(*environment.first)
    before = folder.versions()
    folder.pip(f"{wheel}[{environment.extra}]", *environment.beside)
    after = folder.versions()
    if environment.kept:
        changed = [p for p in before if before[p] != after.get(p) and p not in ("pip", *JAX_PARTS)]
        if changed:
            raise Failed("changed: " + ", ".join(f"{p} {before[p]} → {after.get(p)}" for p in changed))
        notes.append("all kept but " + ", ".join(f"{p} {after[p]}" for p in JAX_PARTS if before.get(p) != after.get(p)))
    for extra in environment.dry:
        folder.pip("--dry-run", f"{wheel}[{extra}]")
        notes.append(f"{extra} resolves")
    said = folder.run(folder.bin / "python", "-c", "import sys; sys.stderr = sys.stdout; import vxl2_jax")
    fits = after.get("jax-cuda12-plugin") in (None, after["jaxlib"])
    if fits != (not said.strip()) or said.strip().count("\n"):
        raise Failed(f"import vxl2_jax printed {said!r}")
    notes += [f"import: {said.strip()}"] if said.strip() else []
    version = folder.run(folder.bin / "vxl2", "--version").split()[-1]
    if version != after["vxl2_jax"]:
        raise Failed(f"vxl2 --version is {version}, not {after['vxl2_jax']}")
    # Copies without the package's sources: what is tested is the wheel.
    for part in ("tests", "experiments", "docs"):
        shutil.copytree(ROOT / part, folder.path / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", folder.path)
    demo = folder.run(folder.bin / "python", "-c", "from vxl2_jax.checkpoints.fetch import NANO; print(NANO.parent)")
    clip = Path(demo.strip().splitlines()[-1]) / "demo.mp4"
    answer = folder.run(folder.bin / "vxl2", "ask", clip, QUESTION, "--json", "--quiet")
    if ANSWER not in answer:
        raise Failed(f"vxl2 ask does not answer {ANSWER}")
    if not fits:
        # Every process would print a page about a plug-in that finds no CUDA, and notebooks must print no errors.
        folder.run(folder.bin / "python", "-m", "pip", "uninstall", "-q", "-y", "jax-cuda12-plugin", "jax-cuda12-pjrt")
    tests = (*TESTS, *environment.more)
    notes.append(folder.run(folder.bin / "python", "-m", "pytest", "-q", "-n", "2", *tests).strip().splitlines()[-1])
    if "lmms" in environment.extra:
        notes.append(run_lmms(folder))
    return "; ".join(notes), after


def run_lmms(folder: Folder) -> str:
    """The commands of docs/how-to/benchmark.md. Returns the row of lmms-eval's table."""
    folder.pip("--no-deps", "lmms-eval==0.7.3")
    folder.run(folder.bin / "python", "-m", "experiments.synthetic", "lmms")
    table = folder.run(
        *(folder.bin / "python", "-m", "lmms_eval", "--model", "vxl2_jax"),
        *("--model_args", "pretrained=nano,mode=bilevel,chunk_size=2,top_k=2"),
        *("--include_path", "experiments/lmms_task", "--tasks", "nano_clips"),
    )
    rows = [line for line in table.splitlines() if line.startswith("|nano_clips")]
    if not rows:
        raise Failed(f"lmms-eval printed no table: {table[-1500:]}")
    return " ".join(rows[0].split())


def main(names: list[str]) -> int:
    """Run the environments of these names, or all of them."""
    if unknown := set(names) - set(ENVIRONMENTS):
        print(f"unknown: {', '.join(sorted(unknown))}; choose {', '.join(ENVIRONMENTS)}", file=sys.stderr)
        return 2
    wheel, failed = build(), 0
    for name in names or ENVIRONMENTS:
        environment, start, processor = ENVIRONMENTS[name], time.perf_counter(), os.times()
        versions: dict[str, str] = {}
        if python := find_python(environment.python):
            try:
                words, versions = check(name, environment, python, wheel)
                result = f"passed: {words}"
            except Failed as error:
                result, failed = f"FAILED: {error}", failed + 1
        else:
            result = f"not run: no Python {environment.python} on this machine"
        spent = os.times()
        used = spent.children_user + spent.children_system - processor.children_user - processor.children_system
        shown = " ".join(f"{p} {versions.get(p, versions.get(p.replace('-', '_'), '?'))}" for p in SHOWN)
        print(f"{name} | Python {environment.python} | {shown if versions else '-'} | {result} | ", end="")
        print(f"{time.perf_counter() - start:.0f} s, {used:.0f} CPU-s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
