"""Every worker has devices of its own, or a share of the cores."""

import pytest

from vxl2_jax.errors import RequestError
from vxl2_jax.fleet.places import CARDS, CHIPS, devices_here, places


def seen(found, name):
    return [place.environment[name] for place in found]


def test_every_worker_has_its_cards():
    assert seen(places(None, found=("gpu", 3), environment={}), CARDS) == ["0", "1", "2"]
    assert seen(places(2, found=("gpu", 2), environment={CARDS: "5,7"}), CARDS) == ["5", "7"]
    assert seen(places(None, 2, found=("gpu", 5), environment={}), CARDS) == ["0,1", "2,3"]


def test_every_worker_has_its_chips_and_knows_how_they_are_wired():
    four = places(None, 4, found=("tpu", 8), environment={})
    assert seen(four, CHIPS) == ["0,1,2,3", "4,5,6,7"]
    assert [place.environment["TPU_CHIPS_PER_PROCESS_BOUNDS"] for place in four] == ["2,2,1"] * 2
    one = places(3, found=("tpu", 4), environment={})
    assert seen(one, CHIPS) == ["0", "1", "2"] and seen(one, "TPU_CHIPS_PER_PROCESS_BOUNDS") == ["1,1,1"] * 3
    assert seen(one, "TPU_PROCESS_BOUNDS") == ["1,1,1"] * 3


@pytest.mark.parametrize(
    ("platform", "workers", "each"), [("gpu", 3, 1), ("gpu", 2, 2), ("gpu", None, 4), ("tpu", 3, 1)]
)
def test_too_many_workers_are_refused(platform, workers, each):
    with pytest.raises(RequestError, match="this machine has 2"):
        places(workers, each, found=(platform, 2), environment={})


def test_cores_are_divided_and_simulated_devices_are_taken_in_turn():
    shares = places(2, found=("cpu", 1), cores=range(5))
    assert [place.cores for place in shares] == [(0, 2, 4), (1, 3)] and {place.device for place in shares} == {0}
    assert [place.cores for place in places(3, found=("cpu", 1), cores=[4, 6])] == [(4,), (6,), (4,)]
    assert [place.device for place in places(None, found=("cpu", 2), cores=range(2))] == [0, 1]
    assert len(places(None, found=("cpu", 1), cores=range(8))) == 1


def test_the_devices_of_this_machine_are_found_by_another_process(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    assert devices_here() == ("cpu", 3)


def test_a_missing_backend_is_one_line(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    with pytest.raises(RequestError, match="unset JAX_PLATFORMS"):
        devices_here()
