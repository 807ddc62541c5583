"""Fixtures shared by all tests: a toy model, and the golden tensors of the original."""

import os
import sys
from pathlib import Path

import beartype
import pytest
from hypothesis import settings
from runtime_types import checked

beartype.beartype = checked  # for --jaxtyping-packages=…,beartype.beartype on the command line

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

# The Hopper interpreter's warpgroups wait for each other on threads of XLA's pool, which has one per core: on two
# cores all of them may wait for one that has no thread.
os.environ.setdefault("NPROC", "16")

# Compilation makes the first example slow; that is no failure.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("house")


@pytest.fixture(scope="session")
def golden() -> Path:
    """A reduced directory in the format that experiments/check_parity.py reads."""
    return ROOT / "tests" / "data" / "golden"


@pytest.fixture(scope="session")
def toy():
    """A model with random weights, small enough to run anything on."""
    import toys

    return toys.model()


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """The suite compiles more than a process may hold: it is let go between modules, and early, so that watching never
    has to within a module (some tests count what is compiled)."""
    yield
    from vxl2_jax import hardware

    hardware.clear_jit_caches(share=0.1)
