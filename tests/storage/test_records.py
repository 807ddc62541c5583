"""A file of checksummed records, complete and torn."""

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


def test_scan_finds_the_records_written(path):
    written, end = records.scan(path)
    data = records.memory_map(path)
    assert [record.kind for record in written] == list(PARTS) and end == path.stat().st_size
    for record, parts in zip(written, PARTS.values(), strict=True):
        assert record.offset % records.ALIGN == 0 and records.is_intact(data, record)
        raw = b"".join(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes() for part in parts)
        assert records.payload(data, record).tobytes() == raw


def test_a_file_truncated_anywhere_keeps_its_complete_records(path):
    written, whole = records.scan(path)[0], path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = records.scan(path)
        if length < records.ALIGN:
            assert found is None
        else:
            kept = [record for record in written if record.end <= length]
            assert found == (kept, kept[-1].end if kept else records.ALIGN)


def test_every_altered_byte_outside_padding_is_detected(path):
    whole = path.read_bytes()
    written, _ = records.scan(path)
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        found = records.scan(path)
        padding = any(record.offset + record.length <= offset < record.end for record in written)
        same = (
            found is not None
            and found[0] == written
            and all(records.is_intact(records.memory_map(path), e) for e in found[0])
        )
        assert same == padding, offset
