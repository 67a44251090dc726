"""The schemas, and that a table is made to fit them or refused."""

import numpy as np
import pyarrow as pa
import pytest

from schemas.annotation import (
    ANNOTATED,
    DECODED,
    INVENTORY,
    PROPOSED,
    conform,
    image_id,
    table_from_rows,
)
from schemas.errors import SchemaError

SMALL = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("box", pa.list_(pa.int32(), 4)),
        pa.field("error", pa.struct([pa.field("code", pa.string(), nullable=False)])),
    ]
)
ROW = {"name": "a", "height": 3, "box": [0, 1, 2, 3], "error": {"code": "corrupt"}}


def test_a_conforming_table_comes_back_in_the_order_and_types_of_the_schema():
    shuffled = pa.table(
        {"error": [ROW["error"]], "box": [ROW["box"]], "height": [3], "name": ["a"]}
    )
    conformed = conform(shuffled, SMALL)
    assert conformed.schema.equals(SMALL, check_metadata=True)
    assert conformed.to_pylist() == [ROW]


@pytest.mark.parametrize(
    "schema",
    [INVENTORY, DECODED, PROPOSED, ANNOTATED],
    ids=["inventory", "decoded", "proposed", "annotated"],
)
def test_the_empty_table_conforms(schema):
    assert conform(schema.empty_table(), schema).schema.equals(schema, check_metadata=True)


def test_a_nullable_column_may_be_all_null():
    table = pa.table({"name": ["a"], "height": [None], "box": [None], "error": [None]})
    assert conform(table, SMALL).to_pylist() == [
        {"name": "a", "height": None, "box": None, "error": None}
    ]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"height": None}, ["missing", "'height'"]),
        ({"colour": ["red"]}, ["unexpected", "'colour'"]),
        ({"name": [None]}, ["'name'", "null"]),
        ({"height": ["tall"]}, ["tall"]),
        ({"height": [1.5]}, ["1.5"]),
        ({"height": [2**40]}, [str(2**40)]),
        ({"name": [["a"]]}, ["list"]),
        ({"name": [{"text": "a"}]}, ["struct"]),
        ({"height": [b"\x00"]}, ["fit"]),
        ({"box": [[0, 1, 2]]}, ["fit"]),
        ({"error": [{"code": None}]}, ["code"]),
        ({"error": ["corrupt"]}, ["fit"]),
    ],
    ids=[
        "missing column",
        "extra column",
        "null in a column that must not hold one",
        "text for a number",
        "fraction for a whole number",
        "number too large",
        "list for text",
        "struct for text",
        "bytes for a number",
        "box of three",
        "null inside a struct",
        "text for a struct",
    ],
)
def test_a_table_that_does_not_fit_is_refused(change, words):
    columns = {name: [value] for name, value in ROW.items()} | change
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    with pytest.raises(SchemaError) as caught:
        conform(table, SMALL)
    for word in words:
        assert word in str(caught.value)


def test_a_column_that_occurs_twice_is_refused():
    columns = [pa.array([ROW[name]]) for name in SMALL.names]
    table = pa.table([*columns, columns[0]], names=[*SMALL.names, "name"])
    with pytest.raises(SchemaError, match="unexpected columns \\['name'\\]"):
        conform(table, SMALL)


def test_the_identity_of_an_image_never_changes():
    # Written into datasets: another value would make every image a new one.
    assert image_id("s3://bucket/a.jpg") == "73d27d696480c1329d57a660ae6333c8"
    assert image_id("s3://bucket/a.jpg") != image_id("s3://bucket/a.jpeg")
    assert len(image_id("")) == len(image_id("file:///é 猫.png")) == 32


def test_rows_become_a_table_with_nulls_for_what_they_lack():
    table = table_from_rows([{"name": "a", "passing": 1}, ROW], SMALL)
    assert table.schema == SMALL
    assert table.to_pylist() == [{"name": "a", "height": None, "box": None, "error": None}, ROW]
    assert table_from_rows([], SMALL).num_rows == 0


def test_large_binaries_are_taken_from_bytes_and_views_of_any_shape():
    schema = pa.schema([pa.field("pixels", pa.large_binary()), pa.field("height", pa.int32())])
    grid = np.arange(6, dtype=np.uint16).reshape(2, 3)
    rows = [{"pixels": b"ab", "height": 1}, {"pixels": grid.data}, {}, {"pixels": b""}]
    table = table_from_rows(rows, schema)
    table.validate(full=True)
    assert table.schema.equals(schema)
    assert table["pixels"].to_pylist() == [b"ab", grid.tobytes(), None, b""]
    assert table_from_rows([{}], schema)["pixels"].null_count == 1
    assert len(table_from_rows([], schema)) == 0


def test_what_is_no_bytes_is_no_large_binary():
    with pytest.raises(TypeError, match="str"):
        table_from_rows([{"pixels": "ab"}], pa.schema([pa.field("pixels", pa.large_binary())]))
