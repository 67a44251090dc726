"""Rows of tables as dictionaries: large binaries are seen where they are, however it was cut."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages.rows import rows_of

VALUES = st.lists(st.one_of(st.none(), st.binary(max_size=5)), max_size=8)


@given(chunks=st.lists(VALUES, max_size=4), start=st.integers(0, 8), length=st.integers(0, 20))
def test_every_value_of_any_slice_of_any_chunks_is_read(chunks, start, length):
    column = pa.chunked_array([pa.array(values, pa.large_binary()) for values in chunks],
                              pa.large_binary())  # fmt: skip
    table = pa.table({"pixels": column, "place": range(len(column))}).slice(start, length)
    found = [
        {**row, "pixels": None if row["pixels"] is None else bytes(row["pixels"])}
        for row in rows_of(table)
    ]
    assert found == table.to_pylist()


def test_large_binaries_are_views_of_the_memory_of_the_table():
    table = pa.table({"pixels": pa.array([b"abc", b"defg"], pa.large_binary())})
    _, _, data = table["pixels"].chunk(0).buffers()
    (_, row) = rows_of(table)
    assert np.frombuffer(row["pixels"], np.uint8).ctypes.data == data.address + 3
    assert row["pixels"].readonly
