"""Fixtures shared by all tests: a toy model, and the golden tensors of the original."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

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
    """Compiled programs are let go between modules when they have become many.

    Each of XLA's CPU programs keeps some ten stretches of memory mapped, of which Linux allows a process 65,530; the
    one that is refused ends the process without a word, in whatever test happens to compile.
    """
    yield
    maps, most = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
    if maps.exists() and most.exists() and maps.read_bytes().count(b"\n") > int(most.read_text()) // 4:
        import jax

        jax.clear_caches()
