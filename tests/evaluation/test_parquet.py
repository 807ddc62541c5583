"""Parquet tables with odd content: rows are read or named one by one, within the limits of a file."""

import pytest

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import files

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xffa")]
)


@pytest.fixture
def read(tmp_path):
    def read(**columns):
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        return files.read_rows(tmp_path / "t.parquet")

    return read


def test_values_that_json_has_too_are_read(read):
    rows = read(
        text=["é", None],
        number=[1, 2],
        share=pa.array([0.5, None]),
        options=pa.array([["a", None], None], pa.list_(pa.string())),
        qa=[[{"q": "?"}], []],
        name=pa.array(["x", "x"]).dictionary_encode(),
        nothing=pa.nulls(2),
    )
    first = {"text": "é", "number": 1, "share": 0.5, "options": ["a", None], "qa": [{"q": "?"}], "name": "x"}
    second = {"text": None, "number": 2, "share": None, "options": None, "qa": [], "name": "x"}
    assert rows == [first | {"nothing": None}, second | {"nothing": None}]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"\x89PNG", None]),
        pa.array([{"bytes": b"\x89PNG", "path": "a"}, None]),
        pa.array([[{"bytes": b"\x89PNG"}], None]),
        pa.array([2**31 - 1, 1], pa.date32()),
        pa.array([2**62, 1], pa.timestamp("us")),
        pa.array([2**62, 1], pa.duration("s")),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    ],
    ids=lambda column: str(column.type)[:20],
)
def test_pictures_and_dates_are_left_out(read, column):
    assert read(question=["a", "b"], odd=column) == [{"question": "a"}, {"question": "b"}]


def test_a_text_that_is_not_utf8_is_one_bad_row(read):
    bad, good = read(question=NOT_UTF8)
    assert isinstance(bad, RequestError) and "row 1" in str(bad) and good == {"question": "a"}


def test_what_a_table_unpacks_to_is_limited(read):
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 300), pa.array(["x" * 2**20]))
    for columns in ({"question": repeated}, {"question": pa.nulls(files.MAX_ROWS + 1, pa.int8())}):
        with pytest.raises(RequestError, match="limit"):
            read(**columns)
