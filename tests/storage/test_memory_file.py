"""Saving and loading memory files, reading parts of them, and refusing damaged ones."""

import dataclasses
import errno
import json
import os

import jax
import numpy as np
import pytest
import toys

from vxl2_jax import files
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import PrefillRule
from vxl2_jax.memory import ResumeState, VideoMemory
from vxl2_jax.storage import memory_file, memory_writer, records


@pytest.fixture(autouse=True)
def small_records(monkeypatch):
    """A small memory then has several records."""
    monkeypatch.setattr(memory_file, "GROUPS_PER_RECORD", 2)


@pytest.fixture(params=["float32", "int8"])
def memory(toy, request):
    remembered = toys.remembered(toy, toys.video(4), PrefillRule(2, None), compression=3, dtype=request.param)
    resume_state = ResumeState(
        np.arange(24, dtype=np.float32).reshape(2, 4, 3), np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    )
    return remembered.replace(
        resume_state=resume_state, video="a video.mkv", video_hash="ab12", notes=("a hole",), last_s=27.0
    )


@pytest.fixture
def path(memory, tmp_path):
    memory.save(tmp_path / "m.vxl2")
    return tmp_path / "m.vxl2"


def scan(path):
    with path.open("rb") as file:
        return records.RecordReader(file).records


def same_streams(layout, one, other):
    for a, b, length in zip(one, other, (layout.visual_length, layout.global_length), strict=True):
        same_cache(a, b, length)


def same_cache(one, other, length):
    assert one.dtype == other.dtype and one.slots == other.slots
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, :, :length], b[:, :, :length]), one, other)


def test_a_loaded_memory_equals_the_saved_one(memory, path):
    found = VideoMemory.load(path)
    for field in dataclasses.fields(memory):
        if field.name == "dense":
            same_streams(memory.layout, found.resident().dense, memory.dense)
        elif field.name == "sparse":
            same_cache(found.sparse, memory.sparse, memory.sparse_length)
        elif field.name == "resume_state":
            jax.tree.map(np.testing.assert_array_equal, found.resume_state, memory.resume_state)
        else:
            assert getattr(found, field.name) == getattr(memory, field.name), field.name
    assert found.identity() == memory.identity() and found.facts() == memory.facts()
    assert [p.name for p in path.parent.iterdir()] == ["m.vxl2"], "no partial file remains"


def test_dtypes_are_preserved(toy, tmp_path):
    memory = toys.remembered(toy, toys.video(), dtype="bfloat16")
    memory.save(tmp_path / "m")
    found = VideoMemory.load(tmp_path / "m")
    assert found.sparse.k.dtype == "bfloat16"
    same_streams(memory.layout, found.resident().dense, memory.dense)


def test_a_memory_loaded_from_disk_can_be_saved_and_repooled(memory, path, tmp_path):
    found = VideoMemory.load(path)
    found.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    changed, wanted = found.with_compression(2), memory.with_compression(2)
    same_cache(changed.sparse, wanted.sparse, wanted.sparse_length)


@pytest.mark.parametrize("groups", [[0], [1, 2], [0, 3, 6], [], range(7)])
def test_gather_reads_the_prefix_and_the_given_groups(memory, path, groups):
    layout, found = memory.layout, VideoMemory.load(path, verify=False)
    got = found.dense.gather(np.asarray(list(groups), int))
    visual = [g * layout.visual + i for g in groups for i in range(layout.visual)]
    timestamps = [i for g in groups for i in range(layout.timestamp_starts[g], layout.timestamp_ends[g])]
    for part, dense, index in zip(got, memory.dense, (visual, [*range(layout.prefix), *timestamps]), strict=True):
        jax.tree.map(lambda a, b, i=index: np.testing.assert_array_equal(a, np.asarray(b)[:, :, i]), part, dense)


def test_only_the_records_read_are_verified(path):
    scanned = scan(path)
    damaged = [record for record in scanned if record.kind == "GROUPS"][2]  # groups 4 and 5
    content = bytearray(path.read_bytes())
    content[damaged.offset + 8] ^= 4
    path.write_bytes(content)
    found = VideoMemory.load(path, verify=False)
    found.dense.gather(np.asarray([1, 2, 6]))
    with pytest.raises(RequestError, match="damaged"):
        found.dense.gather(np.asarray([5]))
    with pytest.raises(RequestError, match="damaged"):
        found.resident()
    for verify in (True, None):
        with pytest.raises(RequestError, match="damaged"):
            VideoMemory.load(path, verify=verify)


def test_every_altered_byte_outside_padding_is_refused(path):
    whole = path.read_bytes()
    padding = {at for record in scan(path) for at in range(record.offset + record.length, record.end)}
    for at in sorted({*range(0, len(whole), 97), *range(200)} - padding):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(RequestError) as caught:
            VideoMemory.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_truncated_anywhere_is_refused(path):
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 211), len(whole) - 1, len(whole) - 64}:
        path.write_bytes(whole[:length])
        with pytest.raises(RequestError) as caught:
            VideoMemory.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "text", "folder", "other version", "appended", "no sparse level"])
def test_other_files_are_refused_in_one_line(path, damage):
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("not a memory\n" * 99)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "appended":
        path.write_bytes(path.read_bytes() + bytes(64))
    else:
        found, data = scan(path), path.read_bytes()
        with path.open("w+b") as file:
            records.start(file)
            for record in found:
                payload = data[record.offset : record.offset + record.length]
                if record.kind == "IDENTITY" and damage == "other version":
                    payload = json.dumps(json.loads(payload) | {"version": 99}).encode()
                if not (record.kind == "SPARSE" and damage == "no sparse level"):
                    records.append(file, record.kind, [payload])
    with pytest.raises(RequestError) as caught:
        VideoMemory.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    if damage == "other version":
        assert "version 99" in str(caught.value)


def test_a_path_that_cannot_be_written_is_reported_in_one_line(memory, tmp_path):
    with pytest.raises(RequestError, match="cannot write the memory") as caught:
        memory.save(tmp_path / "absent" / "m.vxl2")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_reported_and_no_file_remains(memory, tmp_path, monkeypatch):
    append = records.append

    def full(file, kind, parts):
        if kind == "SPARSE":
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(file, kind, parts)

    monkeypatch.setattr(memory_writer.records, "append", full)
    with pytest.raises(RequestError, match="No space left on device.*free some space") as caught:
        memory.save(tmp_path / "m")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_too_little_disk_space_is_reported_before_anything_is_written(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 4000}))
    with pytest.raises(RequestError, match="needs .* more, and 4e-06 GB are free.*; free some space") as caught:
        memory.save(tmp_path / "m")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_an_existing_file_is_kept_if_saving_fails(memory, path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(memory_writer.memory_file, "pack_arrays", lambda arrays: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        memory.save(path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["m.vxl2"]


def rewritten(path, kind, change):
    """Write the file again with the payload of one record changed and all checksums right."""
    found, data = scan(path), path.read_bytes()
    with path.open("w+b") as file:
        records.start(file)
        for record in found:
            payload = data[record.offset : record.offset + record.length]
            records.append(file, record.kind, [change(payload) if record.kind == kind else payload])


ODD = (None, "x", [], {}, -1, 0, 1.5, 10**9, 10**20, float("nan"))
FIELDS = (("layout", "prefix"), ("layout", "stamps"), ("layout", "visual"), ("rule", "block_size"), ("compression",))


@pytest.mark.parametrize(
    "place", [*FIELDS, ("shape",), ("seconds",), ("end_s",), ("frames",), ("rope_theta",)], ids=str
)
def test_a_forged_identity_is_refused(path, place):
    whole = path.read_bytes()
    for value in ODD:

        def forge(payload, value=value):
            identity = part = json.loads(payload)
            for name in place[:-1]:
                part = part[name]
            if value == part[place[-1]] or (place == ("end_s",) and value in (0, 1.5, 10**9)):
                value = "x"
            part[place[-1]] = value if place != ("frames",) or value != 10**9 else -5
            return json.dumps(identity).encode()

        path.write_bytes(whole)
        rewritten(path, "IDENTITY", forge)
        try:
            VideoMemory.load(path)
        except RequestError as error:
            assert "\n" not in str(error)
        else:
            assert place == ("rule", "block_size") or (place == ("rope_theta",) and value in (1.5, 10**9)), value


@pytest.mark.parametrize("kind", ["GROUPS", "SPARSE", "OPEN"])
@pytest.mark.parametrize("change", [lambda p: p[:-64], lambda p: p + bytes(64), lambda p: b"", lambda p: b"{}\n"])
def test_records_of_other_lengths_are_refused(path, kind, change):
    rewritten(path, kind, change)
    with pytest.raises(RequestError):
        VideoMemory.load(path, verify=False)


@pytest.mark.parametrize("link", ["symbolic", "hard", "pipe"])
def test_the_incomplete_file_is_never_another_ones(memory, tmp_path, link):
    other, partial = tmp_path / "precious", memory_writer.partial_path(tmp_path / "m")
    other.write_text("precious")
    {"symbolic": partial.symlink_to, "hard": partial.hardlink_to, "pipe": lambda _: os.mkfifo(partial)}[link](other)
    with pytest.raises(RequestError, match="cannot write"):
        memory.save(tmp_path / "m")
    assert other.read_text() == "precious"


def test_a_finished_file_is_not_truncated_by_a_writer_that_opened_it_before(memory, path, monkeypatch):
    """The second writer opens the incomplete file, and the first one finishes before the second locks it."""
    whole, lock, partial = path.read_bytes(), memory_writer.locking.lock, memory_writer.partial_path(path)
    partial.write_bytes(whole)

    def finish_first(file, name):
        partial.replace(path)
        lock(file, name)

    monkeypatch.setattr(memory_writer.locking, "lock", finish_first)
    with pytest.raises(RequestError, match="another process"):
        memory.save(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", ["truncated", "overwritten"])
def test_a_memory_that_is_changed_while_it_is_used_is_refused(path, change):
    found = VideoMemory.load(path)
    with path.open("r+b") as file:
        file.truncate(100) if change == "truncated" else file.write(bytes(10**4))
    os.utime(path, ns=(0, 0))
    with pytest.raises(RequestError, match="changed"):
        found.dense.gather(np.asarray([1]))
