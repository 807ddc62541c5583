"""Watching into a file, interrupted and resumed; extending a memory."""

import dataclasses
import os
import re
import signal
import subprocess
import sys

import av
import jax
import numpy as np
import pytest

from vxl2_jax import ingest
from vxl2_jax.cli import render
from vxl2_jax.errors import RequestError, TooLongError, VideoError
from vxl2_jax.frames import open_source
from vxl2_jax.hardware import CPU
from vxl2_jax.memory import VideoMemory
from vxl2_jax.storage import memory_writer

from .conftest import noise


@pytest.fixture(scope="module")
def model(model):
    """One of short strides, so that short videos have several."""
    return dataclasses.replace(model, sizes=CPU._replace(stride=16, vision_groups=4))


class Killed(Exception):
    """Stands for whatever ends a process."""


def same(one, other):
    layout = other.layout
    assert one.identity() == other.identity()
    one, other = one.resident(), other.resident()
    levels = zip((*one.dense, one.sparse), (*other.dense, other.sparse), strict=True)
    lengths = (layout.visual_length, layout.global_length, one.sparse_length)
    for (a, b), length in zip(levels, lengths, strict=True):
        assert a.dtype == b.dtype
        jax.tree.map(lambda x, y, n=length: np.testing.assert_array_equal(x[:, :, :n], y[:, :, :n]), a, b)
    assert (one.resume_state is None) == (other.resume_state is None)
    jax.tree.map(np.testing.assert_array_equal, one.resume_state, other.resume_state)


def stop_after(frames):
    def progress(done, total):
        if done >= frames:
            raise Killed

    return progress


@pytest.mark.parametrize("cut", [1, 64, 65, 128, 190])
def test_an_interrupted_watch_resumes_and_gives_the_same_memory(model, tmp_path, cut):
    video = noise(190)
    whole, out, seen = model.watch(video), tmp_path / "m", []
    with pytest.raises(Killed):
        model.watch(video, out=out, progress=stop_after(cut))
    assert [p.name for p in tmp_path.iterdir()] == [".m.part"]
    memory = model.watch(video, out=out, progress=lambda done, total: seen.append((done, total)))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    same(memory, whole)
    same(VideoMemory.load(out), whole)
    # The last stride is always computed again; complete strides before it are not.
    assert seen == [(done, 190) for done in (64, 128, 190) if done > min(-(-cut // 64) * 64, 128)]


def test_a_partial_file_of_another_memory_is_overwritten(model, tmp_path):
    out = tmp_path / "m"
    with pytest.raises(Killed):
        model.watch(noise(130), out=out, progress=stop_after(128), compression=2)
    seen = []
    memory = model.watch(noise(130), out=out, progress=lambda *counts: seen.append(counts))
    assert seen[0] == (64, 130)
    same(VideoMemory.load(out), memory)


def test_an_incomplete_record_is_computed_again(model, tmp_path):
    out, video = tmp_path / "m", noise(190)
    with pytest.raises(Killed):
        model.watch(video, out=out, progress=stop_after(128))
    partial = memory_writer.partial_path(out)
    partial.write_bytes(partial.read_bytes()[:-70])
    seen = []
    memory = model.watch(video, out=out, progress=lambda done, total: seen.append(done))
    assert seen == [128, 190]
    same(memory, model.watch(video))


def test_an_existing_file_is_loaded_or_refused(model, tmp_path):
    out = tmp_path / "m"
    first = model.watch(noise(9), out=out)
    same(model.watch(noise(9), out=out, progress=stop_after(0)), first)
    with pytest.raises(RequestError, match="holds a memory of another video, model or settings"):
        model.watch(noise(9), out=out, block_size=2)
    (tmp_path / "text").write_text("precious")
    with pytest.raises(RequestError):
        model.watch(noise(9), out=tmp_path / "text")
    assert (tmp_path / "text").read_text() == "precious"


def test_a_video_file_is_bound_by_its_content(model, clip, tmp_path):
    copy = tmp_path / "clip.mp4"
    copy.write_bytes(clip.read_bytes())
    memory = model.watch(copy, out=tmp_path / "m", max_frames=8)
    assert len(memory.video_hash) == 64
    copy.write_bytes(clip.read_bytes() + bytes(8))
    with pytest.raises(RequestError, match="another video"):
        model.watch(copy, out=tmp_path / "m", max_frames=8)


def test_a_copy_of_a_video_has_the_same_memory_but_an_unfinished_one_begins_again(model, clip, tmp_path):
    copy, out, seen = tmp_path / clip.name, tmp_path / "m", []
    copy.write_bytes(clip.read_bytes())
    for size in (64, 128):
        with pytest.raises(Killed):
            model.watch(copy, out=out, max_frames=150, progress=stop_after(size))
    os.utime(copy, (1, 1))
    model.watch(copy, out=out, max_frames=150, progress=lambda done, total: seen.append(done))
    assert seen[0] == 64
    os.utime(copy, (2, 2))
    same(model.watch(copy, out=out, max_frames=150, progress=stop_after(0)), VideoMemory.load(out))


def test_the_hash_is_not_computed_on_after_watching_has_failed(model, clip, tmp_path):
    stopped = []
    source = open_source(clip, model.config.vision.image_size, {})._replace(stop=lambda: stopped.append(True))
    with pytest.raises(Killed):
        ingest.watch(model, source, callbacks=ingest.Callbacks(stop_after(4)))
    assert stopped == [True]


def test_what_is_missing_of_a_video_is_part_of_its_memory(model, clip, tmp_path):
    half = tmp_path / "half.mkv"
    with av.open(str(clip)) as source, av.open(str(half), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    memory = model.watch(half, out=tmp_path / "m", max_frames=8)
    assert "could be read" in memory.notes[0] and VideoMemory.load(tmp_path / "m").notes == memory.notes
    assert render.as_data(memory, [], {})["video"]["notes"] == list(memory.notes)


def test_two_processes_do_not_write_one_memory(model, tmp_path):
    out = tmp_path / "m"

    def progress(done, total):
        with pytest.raises(RequestError, match="another process is writing it"):
            model.watch(noise(9), out=out)

    model.watch(noise(9), out=out, progress=progress)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_process_killed_while_it_writes_can_be_resumed(model_dir, clip, tmp_path):
    out = tmp_path / "m"
    command = [
        sys.executable, "-m", "vxl2_jax", "watch", str(clip), "--out", str(out), "--model", str(model_dir),
        "--max-frames", "150", "--quiet", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = memory_writer.partial_path(out)
    while process.poll() is None and not (partial.exists() and partial.stat().st_size > 4096):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert out.exists() or partial.exists()
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    assert VideoMemory.load(out, verify=True).frames == 150 and not partial.exists()


CUTS = [(1, 150), (5, 6, 100, 150), (64, 128, 150), (63, 65, 150), (2, 3, 4, 5, 9, 150)]


@pytest.mark.parametrize(("cuts", "cache"), [*((cuts, "wide") for cuts in CUTS), (CUTS[1], "int8"), (CUTS[3], "int8")])
def test_extending_equals_watching_at_once_bit_for_bit(model, cuts, cache):
    frames, seconds = noise(150)
    memory = model.watch((frames[: cuts[0]], seconds[: cuts[0]]), cache=cache)
    for begin, end in zip(cuts, cuts[1:], strict=False):
        memory = model.watch_more(memory, frames[begin:end], seconds[begin:end])
    same(memory, model.watch((frames, seconds), cache=cache))


def test_extending_leaves_the_memory_unchanged_and_works_from_disk(model, tmp_path):
    frames, seconds = noise(90)
    memory = model.watch((frames[:70], seconds[:70]), out=tmp_path / "m")
    before = jax.tree.map(np.array, memory)
    longer = model.watch_more(memory, frames[70:], seconds[70:])
    jax.tree.map(np.testing.assert_array_equal, memory, before)
    same(model.watch_more(VideoMemory.load(tmp_path / "m"), frames[70:], seconds[70:]), longer)


def test_frames_that_do_not_follow_are_refused(model):
    frames, seconds = noise(9)
    memory = model.watch((frames, seconds))
    with pytest.raises(RequestError, match="after the memory's last frame at 8.0 s"):
        model.watch_more(memory, frames[:2], [8.0, 9.0])
    with pytest.raises(RequestError, match="not decrease"):
        model.watch_more(memory, frames[:2], [10.0, 9.0])
    with pytest.raises(RequestError, match="frames must be uint8"):
        model.watch_more(memory, frames[:2, :5], [9.0, 10.0])
    with pytest.raises(RequestError, match="another model"):
        model.watch_more(memory.replace(model="?"), frames[:2], [9.0, 10.0])


def test_a_missing_video_leaves_no_file(model, tmp_path):
    with pytest.raises(VideoError):
        model.watch(tmp_path / "no.mp4", out=tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_video_whose_positions_would_not_be_exact_is_refused(model, monkeypatch):
    monkeypatch.setattr("vxl2_jax.encode.MAX_POSITIONS", 2**15 + 300)
    with pytest.raises(TooLongError, match=r"give --max-frames \d+") as refused:
        model.watch(noise(400))
    fitting = int(re.search(r"--max-frames (\d+)", str(refused.value))[1])
    assert 0 < fitting < 400 and model.watch(noise(fitting)).frames == fitting
