"""Fixtures shared by all tests: a toy model, and the golden tensors of the original."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Nearly all time is compilation: XLA optimises little, and programs are kept on disk for both test processes, for the
# commands that tests start, and because JAX's own caches are cleared between modules.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.mkdtemp(prefix="vxl2-tests-")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": programs, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

# The Hopper interpreter runs warpgroups, which wait for each other, on XLA's thread pool. With its default size of one
# thread per core they can deadlock.
os.environ.setdefault("NPROC", "16")

# No deadline: the first example compiles.
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
    """Clear the jit caches between modules: the suite compiles more programs than a process may map.

    Before watching does (`hardware.clear_jit_caches`), so that it never clears them within a module: some tests count
    compilations.
    """
    yield
    if hardware := sys.modules.get("vxl2_jax.hardware"):
        hardware.clear_jit_caches(share=0.3)
