"""Workers on a local Ray cluster: every item has one row, whatever happens to workers."""

import importlib.util
import os
import socket
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from vxl2_jax.errors import RequestError
from vxl2_jax.fleet import cluster
from vxl2_jax.fleet.cluster import ClusterSettings
from vxl2_jax.fleet.places import child_environment

from fleet.stub import Stub, answered, items  # isort: skip (a name that worker processes can import)

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")


def test_without_ray_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r'pip install "vxl2_jax\[ray\]"'):
        answered(partial(cluster.run, settings=ClusterSettings()), Stub(tmp_path), items(""))


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_without_a_cluster_is_one_line_at_once(tmp_path, monkeypatch, prefix):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        address = f"{prefix}127.0.0.1:{unused.getsockname()[1]}"
        ray = SimpleNamespace(is_initialized=lambda: False, init=lambda *_, **__: pytest.fail("asked Ray"))
        monkeypatch.setattr(cluster, "_import", lambda: (ray, None))
        with pytest.raises(RequestError, match=f"no Ray cluster at {address} .*refused.*ray start"):
            answered(partial(cluster.run, settings=ClusterSettings(address)), Stub(tmp_path), items(""))


@pytest.mark.parametrize(
    ("found", "kind", "reserved"),
    [
        ({"CPU": 8, "GPU": 4}, None, {"num_cpus": 1, "num_gpus": 2}),
        ({"CPU": 8, "TPU": 4}, None, {"num_cpus": 1, "resources": {"TPU": 2}}),
        ({"CPU": 8}, None, {"num_cpus": 1}),
        ({"CPU": 8}, "gpu", {"num_cpus": 1, "num_gpus": 2}),
    ],
)
def test_workers_reserve_what_the_cluster_has_or_will_have(found, kind, reserved):
    assert cluster._resources(ClusterSettings(each=2, kind=kind), found) == reserved


@pytest.fixture(scope="module")
def two_workers():
    """A fleet of two on a cluster with two cores."""
    import ray

    paths = {"env_vars": {"PYTHONPATH": child_environment()["PYTHONPATH"]}}
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's name) a worker that starts would wait for every other process
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=paths)
    yield partial(cluster.run, settings=ClusterSettings(workers=(2, 2)))
    ray.shutdown()


@needs_ray
@pytest.mark.slow
def test_every_item_has_one_row_though_workers_end(two_workers, tmp_path):
    with pytest.warns(UserWarning, match="a toy"):
        rows, log = answered(two_workers, Stub(tmp_path), items("", "kill", "", "kill once", "raise", "warn", ""))
    assert {key: len(found) for key, found in rows.items()} == dict.fromkeys(range(7), 1)
    assert "3 times" in rows[1][0]["error"] and "nobody expected this" in rows[4][0]["error"]
    assert [rows[key][0].get("name") for key in (0, 2, 3, 5, 6)] == ["0", "2", "3", "5", "6"]
    begun = Stub(tmp_path).begun()
    assert (begun.count("1"), begun.count("4"), begun.count("3")) == (3, 3, 2)
    assert log.retries == 5 and sum(one.restarts for one in log.workers.values()) == 7
    assert sum(one.items for one in log.workers.values()) == 7


@needs_ray
@pytest.mark.slow
def test_what_would_fail_every_item_stops_the_fleet(two_workers, tmp_path):
    with pytest.raises(RequestError, match="no such model"):
        answered(two_workers, Stub(tmp_path, "refuse"), items("", ""))
