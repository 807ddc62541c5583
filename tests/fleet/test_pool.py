"""A pool of processes: every item has one row, whatever happens to workers."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from vxl2_jax.errors import RequestError, ToyModelWarning
from vxl2_jax.fleet import here, pool
from vxl2_jax.fleet.places import Place, child_environment
from vxl2_jax.fleet.work import FleetLog

from fleet.stub import Stub, answered, items  # isort: skip (a name that worker processes can import)

TESTS = Path(__file__).resolve().parents[1]


def pool_of(count: int):
    core = sorted(os.sched_getaffinity(0))[0]
    found = [Place(f"place {number}", {"CUDA_VISIBLE_DEVICES": str(number)}, 0, (core,)) for number in range(count)]
    return partial(pool.run, places=found)


def test_one_process_answers_in_order(tmp_path):
    stub = Stub(tmp_path)
    rows, log = answered(here.run, stub, items("", "", ""))
    assert list(rows) == [0, 1, 2] and stub.begun() == ["0", "1", "2"]
    assert log.as_data(1.0)["workers"]["here"]["videos"] == 3 and log.about == {"pid": os.getpid()}


def test_the_longest_come_first_and_each_worker_has_its_place(tmp_path):
    stub = Stub(tmp_path)
    with pytest.warns(ToyModelWarning, match="a toy"):
        rows, log = answered(pool_of(2), stub, items(*[""] * 5, "warn"))
    assert {key: len(found) for key, found in rows.items()} == dict.fromkeys(range(6), 1)
    for worker in {row["pid"] for (row,) in rows.values()}:
        own = [name for name in stub.begun() if rows[int(name)][0]["pid"] == worker]
        assert own == sorted(own, reverse=True)
    places = {(row["pid"], row["cards"], *row["cores"]) for (row,) in rows.values()}
    assert len(places) == len({cards for _, cards, _ in places}) <= 2 and len({core for _, _, core in places}) == 1
    assert sum(one.items for one in log.workers.values()) == 6 and log.retries == 0


def test_an_item_that_ends_its_workers_is_one_row_and_its_neighbours_are_answered(tmp_path):
    stub = Stub(tmp_path)
    rows, log = answered(pool_of(2), stub, items("", "kill", "", "kill once", "raise", ""))
    assert {key: len(found) for key, found in rows.items()} == dict.fromkeys(range(6), 1)
    assert "3 times" in rows[1][0]["error"] and "SIGKILL" in rows[1][0]["error"]
    assert "nobody expected this" in rows[4][0]["error"]
    assert [rows[key][0].get("name") for key in (0, 2, 3, 5)] == ["0", "2", "3", "5"]
    begun = stub.begun()
    assert (begun.count("1"), begun.count("4"), begun.count("3")) == (3, 3, 2)
    assert sum(one.restarts for one in log.workers.values()) >= 6 and log.retries >= 5


@pytest.mark.parametrize(("fails", "message"), [("refuse", "no such model"), ("die", "code 3")])
def test_workers_that_cannot_start_stop_the_fleet(tmp_path, fails, message):
    with pytest.raises(RequestError, match=message):
        answered(pool_of(2), Stub(tmp_path, fails), items("", ""))


def test_workers_end_with_a_fleet_that_is_left(tmp_path):
    log = FleetLog()
    results = pool_of(2)(Stub(tmp_path), items("wait", "", "wait", ""), log)
    next(results)
    pids = [one.about["pid"] for one in log.workers.values() if one.about]
    results.close()
    assert pids and not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_workers_end_with_a_driver_that_is_killed(tmp_path):
    code = (
        "from fleet.stub import Stub, items; from fleet.test_pool import pool_of; from pathlib import Path; "
        "from vxl2_jax.fleet.work import FleetLog\n"
        f"for _ in pool_of(1)(Stub(Path({str(tmp_path)!r})), items('wait'), FleetLog()): pass"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], env=child_environment())
    while not (begun := list(tmp_path.iterdir())):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    worker = int(begun[0].name.split("-")[1])
    deadline = time.monotonic() + 20
    while is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
