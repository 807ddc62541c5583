"""A long MP4 file is indexed from its own table, with the same result as by reading it."""

import dataclasses

import av
import numpy as np
import pytest
from clips import write_clip

from vxl2_jax.video import index, sample_table
from vxl2_jax.video.index import read_index

CLIPS = {
    "b-frames.mp4": {"g": "30", "bf": "3"},
    "no-b-frames.mov": {"g": "10", "bf": "0"},
    "mpeg4.mp4": {"codec": "mpeg4", "g": "12", "bf": "2"},
    "variable.mp4": {"times": [0.04 * i + 2 * (i > 40) for i in range(90)], "bf": "2", "g": "20"},
    "rotated.mp4": {"rotation": 90},
}


@pytest.fixture
def tables(monkeypatch):
    """Tables are used for short files too; whether each was."""
    found, original = [], sample_table.read

    def read(*args):
        table = original(*args)
        found.append(table is not None)
        return table

    monkeypatch.setattr(sample_table, "MIN_PACKETS", 1)
    monkeypatch.setattr(sample_table, "read", read)
    return found


def remuxed(source, target, **options):
    with av.open(str(source)) as one, av.open(str(target), "w", options=options) as other:
        stream = other.add_stream_from_template(one.streams.video[0])
        for packet in one.demux(video=0):
            if packet.size:
                packet.stream = stream
                other.mux(packet)
    return target


def by_reading(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sample_table, "MIN_PACKETS", 10**9)
        return read_index(path)


def check_same(path, monkeypatch):
    found, expected = read_index(path), by_reading(path, monkeypatch)
    for field in dataclasses.fields(index.PacketIndex):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, field.name


@pytest.mark.parametrize("name", CLIPS)
def test_the_table_gives_the_index_that_reading_gives(name, tables, monkeypatch, tmp_path):
    path = write_clip(tmp_path / name, 90, **CLIPS[name])
    check_same(path, monkeypatch)
    assert tables == [True]
    fast = remuxed(path, tmp_path / f"fast-{name}", movflags="faststart+negative_cts_offsets")
    check_same(fast, monkeypatch)
    assert tables == [True, True]


def test_a_download_that_ended_early_has_the_frames_that_are_there(tables, monkeypatch, tmp_path):
    path = remuxed(write_clip(tmp_path / "a.mp4", 90, g="10"), tmp_path / "fast.mp4", movflags="faststart")
    data = path.read_bytes()
    for size in range(len(data) // 2, len(data) // 2 + 200, 17):
        path.write_bytes(data[:size])
        check_same(path, monkeypatch)
    assert all(tables)


def test_other_files_are_read(tables, monkeypatch, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 60, g="10")
    for path in (
        remuxed(clip, tmp_path / "fragmented.mp4", movflags="frag_keyframe+empty_moov"),
        remuxed(clip, tmp_path / "a.mkv"),
    ):
        assert len(read_index(path).times) == 60 and not any(tables)
    data = bytearray(clip.read_bytes())
    offsets = data.index(b"ctts") + 4
    for change in (1, 8):  # the number of packets of a run; their offset
        changed = bytearray(data)
        changed[offsets + 8 + change] ^= 1
        (tmp_path / "changed.mp4").write_bytes(changed)
        check_same(tmp_path / "changed.mp4", monkeypatch)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"stsd", lambda box: box[:4] + (2).to_bytes(4, "big") + box[8:]),
        (b"elst", lambda box: box[:4] + (2).to_bytes(4, "big") + 2 * box[8:]),
    ],
    ids=["two settings of the decoder", "two edits"],
)
def test_a_table_of_several_parts_is_not_used(kind, content, monkeypatch, tmp_path):
    path = write_clip(tmp_path / "a.mp4", 30, g="10", bf="2")
    boxes = sample_table._movie_boxes(path)
    track = next(int.from_bytes(box[12:16], "big") for name, box in boxes if name == b"tkhd")
    assert sample_table._composition_offsets(path, track, 30) is not None and kind in dict(boxes)
    changed = [(name, content(box) if name == kind else box) for name, box in boxes]
    monkeypatch.setattr(sample_table, "_movie_boxes", lambda path: changed)
    assert sample_table._composition_offsets(path, track, 30) is None
