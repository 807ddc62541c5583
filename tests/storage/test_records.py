"""A file of checksummed records, complete and torn."""

import os

import numpy as np
import pytest

from vxl2_jax.storage import records

PARTS = {
    "A": [b"head", np.arange(5, dtype=np.float32)],
    "B": [],
    "C": [np.arange(300, dtype=np.int16).reshape(3, 100).T],
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    with path.open("w+b") as file:
        records.start(file)
        for kind, parts in PARTS.items():
            records.append(file, kind, parts)
    return path


def scan(path):
    """The intact records of a file, or None if it is not one of records."""
    with path.open("rb") as file:
        try:
            reader = records.RecordReader(file)
            for record in reader.records:
                reader.payload(record)
        except ValueError:
            return None
        return reader.records


def test_the_records_written_are_found(path):
    with path.open("rb") as file:
        reader = records.RecordReader(file)
        assert [record.kind for record in reader.records] == list(PARTS)
        assert reader.end == reader.size == path.stat().st_size
        for record, parts in zip(reader.records, PARTS.values(), strict=True):
            raw = b"".join(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes() for part in parts)
            assert record.offset % records.ALIGN == 0 and reader.payload(record).tobytes() == raw


def test_a_file_truncated_anywhere_keeps_its_complete_records(path):
    written, whole = scan(path), path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = [record for record in written if record.end <= length]
        assert scan(path) == (None if length < records.ALIGN else kept)


def test_every_altered_byte_outside_padding_is_detected(path):
    whole, written = path.read_bytes(), scan(path)
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        padding = any(record.offset + record.length <= offset < record.end for record in written)
        assert (scan(path) == written) == padding, offset


@pytest.mark.parametrize("change", ["truncated", "overwritten", "appended"])
def test_a_file_that_is_changed_while_it_is_open_is_refused(path, change):
    with path.open("rb") as file:
        reader = records.RecordReader(file)
        whole = path.read_bytes()
        with path.open("r+b") as other:
            other.truncate(70) if change == "truncated" else other.write(whole + b"x" * (change == "appended"))
        os.utime(path, ns=(0, 0))  # a clock that is finer than the file system's
        with pytest.raises(OSError, match="changed"):
            reader.payload(reader.records[0], verify=False)


def test_a_file_that_is_replaced_is_read_as_it_was(path):
    with path.open("rb") as file:
        reader = records.RecordReader(file)
        before = reader.payload(reader.records[0]).tobytes()
        path.with_name("other").write_bytes(b"x")
        path.with_name("other").replace(path)
        assert reader.payload(reader.records[0]).tobytes() == before
