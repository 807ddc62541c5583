"""A file of checksummed records, whole and torn."""

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


def test_what_was_written_is_found_again(path):
    entries, end = records.entries(path)
    data = records.mapped(path)
    assert [entry.kind for entry in entries] == list(PARTS) and end == path.stat().st_size
    for entry, parts in zip(entries, PARTS.values(), strict=True):
        assert entry.offset % records.ALIGN == 0 and records.intact(data, entry)
        raw = b"".join(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes() for part in parts)
        assert records.payload(data, entry).tobytes() == raw


def test_a_file_cut_anywhere_keeps_its_whole_records(path):
    entries, whole = records.entries(path)[0], path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = records.entries(path)
        if length < records.ALIGN:
            assert found is None
        else:
            kept = [entry for entry in entries if entry.end <= length]
            assert found == (kept, kept[-1].end if kept else records.ALIGN)


def test_every_altered_byte_is_noticed(path):
    whole = path.read_bytes()
    entries, _ = records.entries(path)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = records.entries(path)
        padding = any(entry.offset + entry.length <= place < entry.end for entry in entries)
        same = (
            found is not None and found[0] == entries and all(records.intact(records.mapped(path), e) for e in found[0])
        )
        assert same == padding, place
