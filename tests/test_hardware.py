"""Default dtype, batch sizes and memory of machines; clearing the jit caches."""

import math
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vxl2_jax import hardware
from vxl2_jax.storage import memory_file

CPU = SimpleNamespace(platform="cpu")
GIB = 2**30


def gpu(capability: str):
    return SimpleNamespace(platform="gpu", compute_capability=capability)


@pytest.mark.parametrize(
    ("device", "dtype", "sizes"),
    [
        (CPU, "float32", hardware.CPU),
        (gpu("7.5"), "float16", hardware.SMALL),
        (gpu("8.0"), "bfloat16", hardware.LARGE),
        (gpu("9.0"), "bfloat16", hardware.LARGE),
        (SimpleNamespace(platform="tpu"), "bfloat16", hardware.LARGE),
    ],
)
def test_dtype_and_sizes(device, dtype, sizes):
    assert hardware.default_dtype(device) == dtype and hardware.sizes_for(device) == sizes


@pytest.mark.parametrize("sizes", [hardware.CPU, hardware.SMALL, hardware.LARGE])
def test_a_stride_is_whole_vision_batches_and_whole_records(sizes):
    assert sizes.stride % sizes.vision_groups == 0 and sizes.stride % memory_file.GROUPS_PER_RECORD == 0


def accelerator(memory_stats):
    return SimpleNamespace(platform="gpu", memory_stats=memory_stats)


def test_memory_of_an_accelerator_is_its_allocators():
    device = accelerator(lambda: {"bytes_limit": 15 * GIB, "bytes_in_use": 3 * GIB})
    assert (hardware.memory_bytes(device), hardware.used_bytes(device)) == (15 * GIB, 3 * GIB)


def test_memory_of_an_accelerator_that_keeps_no_count_is_unknown():
    def refuse():
        raise NotImplementedError

    for silent in (accelerator(lambda: None), accelerator(refuse)):
        assert hardware.memory_bytes(silent) is None and hardware.used_bytes(silent) is None


@pytest.fixture
def linux(tmp_path):
    """Directories as Linux has them: 6 GiB free, 2 held, no limit. Files are added by path."""

    class Linux(SimpleNamespace):
        def write(self, path, text):
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

        def limit(self):
            return hardware.memory_bytes(CPU, tmp_path / "proc", tmp_path / "groups")

    made = Linux()
    made.write(
        "proc/meminfo", "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    6291456 kB\n"
    )
    made.write("proc/self/status", "Name:\tpython\nVmPeak:\t 9999999 kB\nVmRSS:\t 2097152 kB\n")
    return made


def test_memory_of_a_cpu_is_what_is_free_and_what_is_held(linux, tmp_path):
    assert linux.limit() == 8 * GIB
    assert hardware.used_bytes(CPU, tmp_path / "proc") == 2 * GIB
    assert hardware.free_host_bytes(tmp_path / "proc", tmp_path / "groups") == 6 * GIB
    assert hardware.free_host_bytes(tmp_path / "nowhere", tmp_path / "nowhere") == math.inf


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", {"groups/memory.max": f"{5 * GIB}\n"}),
        ("0::/jobs/one", {"groups/jobs/memory.max": f"{5 * GIB}\n", "groups/jobs/one/memory.max": "max\n"}),
        ("0::/of/the/host", {"groups/memory.max": f"{5 * GIB}\n"}),
        ("5:cpu,cpuacct:/\n4:memory:/docker/a\n0::/", {"groups/memory/docker/a/memory.limit_in_bytes": f"{5 * GIB}\n"}),
        (
            "4:memory:/x",
            {
                "groups/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "groups/memory/x/memory.limit_in_bytes": f"{5 * GIB}",
            },
        ),
    ],
)
def test_a_control_group_limits_the_memory_of_a_cpu(linux, groups, files):
    linux.write("proc/self/cgroup", groups + "\n")
    for path, text in files.items():
        linux.write(path, text)
    assert linux.limit() == 5 * GIB


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", str(64 * GIB)])
def test_a_control_group_without_a_smaller_limit_changes_nothing(linux, limit):
    linux.write("proc/self/cgroup", "0::/\n")
    linux.write("groups/memory.max", limit + "\n")
    assert linux.limit() == 8 * GIB


def test_memory_of_a_cpu_that_reports_nothing_is_unknown(tmp_path):
    assert hardware.memory_bytes(CPU, tmp_path, tmp_path) is None and hardware.used_bytes(CPU, tmp_path) is None


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_an_allocation_counts_as_used_memory():
    device, before = jax.devices("cpu")[0], hardware.used_bytes(jax.devices("cpu")[0])
    block = np.ones(200 * 2**20, np.uint8)
    assert hardware.used_bytes(device) - before > 0.9 * block.nbytes
    assert hardware.memory_bytes(device) > hardware.used_bytes(device)


@pytest.mark.parametrize(("maps", "limit", "cleared"), [(51, "100\n", True), (50, "100\n", False), (51, "", False)])
def test_jit_caches_are_cleared_when_maps_run_short(linux, tmp_path, monkeypatch, maps, limit, cleared):
    calls = []
    monkeypatch.setattr(jax, "clear_caches", lambda: calls.append(True))
    linux.write("proc/self/maps", "7f00-7f01 r-xp 00000000 00:00 0\n" * maps)
    linux.write("proc/sys/vm/max_map_count", limit)
    assert hardware.clear_jit_caches(proc=tmp_path / "proc") == cleared == bool(calls)


def test_clearing_the_jit_caches_frees_maps():
    def maps():
        return hardware._read(hardware._PROC / "self" / "maps").count("\n")

    if not maps():
        pytest.skip("this system does not report maps")
    compiled = [jax.jit(lambda x, n=n: x + n) for n in range(30)]
    for number, each in enumerate(compiled):
        each(np.zeros(number + 2, np.float32))
    before = maps()
    assert hardware.clear_jit_caches(share=0.0) and maps() < before - 30


def test_memory_that_jax_leaves_out_is_named_on_gpus_only(monkeypatch):
    class Card:
        platform = "gpu"

    for name in ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.delenv(name, raising=False)
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in hardware.unused_memory(Card())
    assert hardware.unused_memory(CPU) == ""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert hardware.unused_memory(Card()) == ""
