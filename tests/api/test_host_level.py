"""Watching with the dense level in host memory gives the memory that watching on the device gives, bit for bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from vxl2_jax import ingest, offload, planning
from vxl2_jax.errors import TooLongError
from vxl2_jax.hardware import CPU
from vxl2_jax.memory import VideoMemory
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage.host_level import HostLevel

from .conftest import ASKED, noise
from .test_watching import Killed, same, stop_after

QUESTIONS = ["is there a user?", "what is there?", "is there time?"]


@pytest.fixture(scope="module")
def model(model):
    """One of short strides, so that short videos have several."""
    return dataclasses.replace(model, sizes=CPU._replace(stride=16, vision_groups=4))


@pytest.fixture(scope="module", params=["wide", "int8"])
def memories(model, request):
    """A video of three strides, watched on the device and in host memory."""
    return [model.watch(noise(150), cache=request.param, dense_level=place) for place in ("device", "host")]


def test_both_levels_are_equal(memories):
    device, host = memories
    assert isinstance(device.dense, DenseCache) and isinstance(host.dense, HostLevel)
    same(host, device)
    assert "in host memory" in repr(host)


@pytest.mark.parametrize("options", [{}, {"top_k": None}])
def test_answers_are_equal(model, memories, options):
    if options and memories[0].dtype == "int8":
        pytest.skip("whether chunks are loaded does not depend on their dtype")
    device, host = ([a.text for a in model.ask(m, QUESTIONS, **{**ASKED, **options})] for m in memories)
    assert device == host


def test_layers_are_copied_in_pieces_of_any_size(model, memories, monkeypatch):
    # A piece that divides nothing: the last one begins earlier, so that all have one shape.
    monkeypatch.setattr(offload, "_PIECE", 7)
    cache = "int8" if memories[0].dtype == "int8" else "wide"
    same(model.watch(noise(150), cache=cache, dense_level="host"), memories[0])


def test_a_level_in_host_memory_is_saved_and_pooled_without_the_device(memories, tmp_path, monkeypatch):
    device, host = memories
    device.save(tmp_path / "device")
    pooled = device.with_compression(2)
    monkeypatch.setattr(VideoMemory, "dense_on_device", None)
    host.save(tmp_path / "host")
    assert (tmp_path / "host").read_bytes() == (tmp_path / "device").read_bytes()
    stored = VideoMemory.load(tmp_path / "host")
    with monkeypatch.context() as patch:
        patch.setattr(VideoMemory, "dense_on_host", None)  # a record at a time
        stored.save(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "device").read_bytes()
    stored.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "device").read_bytes()
    for memory in (host, stored):
        changed = memory.with_compression(2)
        assert type(changed.dense) is type(memory.dense)
        jax.tree.map(np.testing.assert_array_equal, changed.sparse, pooled.sparse)


@pytest.mark.parametrize(("cuts", "cache"), [((5, 6, 100, 150), "wide"), ((63, 65, 150), "int8")])
def test_extending_equals_watching_at_once(model, cuts, cache):
    frames, seconds = noise(150)
    memory = model.watch((frames[: cuts[0]], seconds[: cuts[0]]), cache=cache, dense_level="host")
    for begin, end in zip(cuts, cuts[1:], strict=False):
        before = jax.tree.map(np.array, memory.dense.streams)
        longer = model.watch_more(memory, frames[begin:end], seconds[begin:end])
        jax.tree.map(np.testing.assert_array_equal, memory.dense.streams, before)
        memory = longer
    assert isinstance(memory.dense, HostLevel)
    same(memory, model.watch((frames, seconds), cache=cache))


@pytest.mark.parametrize("places", [("device", "host"), ("host", "device")])
def test_an_interrupted_watch_resumes_in_either_place(model, tmp_path, places):
    out = tmp_path / "m"
    with pytest.raises(Killed):
        model.watch(noise(150), out=out, progress=stop_after(64), dense_level=places[0])
    seen = []
    found = model.watch(noise(150), out=out, progress=lambda done, total: seen.append(done), dense_level=places[1])
    assert seen == [128, 150]
    whole = model.watch(noise(150))
    same(found, whole)
    same(VideoMemory.load(out), whole)


def test_a_memory_of_another_place_is_extended_in_host_memory(model, tmp_path, monkeypatch):
    frames, seconds = noise(90)
    memory = model.watch((frames[:70], seconds[:70]), out=tmp_path / "m")
    monkeypatch.setattr(ingest, "_choose_place", lambda *_: "host")
    for old in (memory, VideoMemory.load(tmp_path / "m")):
        longer = model.watch_more(old, frames[70:], seconds[70:])
        assert isinstance(longer.dense, HostLevel)
        same(longer, model.watch((frames, seconds)))


def test_the_host_is_chosen_only_where_the_device_has_no_room():
    config = planning.model_of("video-xl-2")[0]
    layout = planning.layout_for(config, None, 9000, 1.0)
    weights = 8_130_000_000
    known = {
        "frames": 9000,
        "weights_bytes": weights,
        "used_bytes": weights,
        "weights": "int8",
        "cache": "int8",
        **planning.DEVICES["v5e"].settings(config, cache="int8"),
    }

    def choose(asked, limit, free):
        return planning.choose_place(
            config, layout, asked, limit_bytes=limit and int(limit), free_host_bytes=free, **known
        )

    assert choose("auto", 32e9, 100e9) == ("device", "")
    place, reason = choose("auto", 16.9e9, 100e9)
    assert place == "host" and "no room" in reason
    assert choose("host", 32e9, 100e9) == ("host", "")
    assert choose("auto", None, 0) == ("device", "")
    with pytest.raises(TooLongError, match="--dense-level host"):
        choose("device", 16.9e9, 100e9)
    with pytest.raises(TooLongError, match=r"the host's memory, but only 10 GB are available: .*give --max-frames \d+"):
        choose("auto", 16.9e9, 10e9)
    with pytest.raises(TooLongError, match="12 GB are available"):
        choose("auto", 12e9, 100e9)
    # On a CPU, both are the same memory.
    with pytest.raises(TooLongError):
        choose("auto", 16.9e9, None)
    with pytest.raises(TooLongError):
        choose("host", 16.9e9, None)


def test_a_place_that_is_none_is_refused(command, clip):
    result = command("watch", clip, "--dense-level", "cloud")
    assert result.code == 2 and "device or host" in result.err


def test_the_plan_counts_host_memory(command):
    arguments = ("plan", "--frames", 9000, "--model", "BAAI/Video-XL-2", "--weights", "int8", "--cache", "int8")
    found = {
        place: json.loads(command(*arguments, "--device", "v5e", "--dense-level", place, "--json").out)
        for place in ("device", "host", "auto")
    }
    assert not found["device"]["fits"] and "--dense-level host" in found["device"]["advice"]
    assert found["device"]["host_bytes"] == found["device"]["host_traffic_bytes"] == 0
    assert found["host"]["fits"] and found["auto"] == found["host"]
    assert found["host"]["host_bytes"] == found["device"]["bytes"]["dense"]
    # About half of the level before each of 36 strides, and all of it once more.
    assert 18 < found["host"]["host_traffic_bytes"] / found["host"]["host_bytes"] < 19
    assert found["host"]["fitting_settings"][0]["dense_level"] == "host"
