"""One image's rows in a dataset, found by the statistics of row groups."""

import difflib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, BinaryIO, Final

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.files import in_parallel, read_with
from pipeline.pages import shown_uri
from pipeline.parts import read_columns
from pipeline.storage import hide_secrets
from schemas.annotation import image_id
from schemas.errors import SettingsError
from schemas.manifest import Manifest

_ID: Final = re.compile(r"[0-9a-f]{32}")
_NAMED: Final = 5  # images in a message

Row = dict[str, Any]


def find_image(dataset: str, manifest: Manifest, image: str) -> Row:
    """Return the row of an image given by id, uri, path or file name.

    Raises SettingsError when the version has no such image, or a file name that several have.
    """
    ids = [image_id(image), image_id(f"file://{os.path.abspath(image)}")]
    if _ID.fullmatch(image):
        ids.append(image)
    paths = [file.path for file in manifest.images]
    for wanted in ids:
        if rows := find_rows(dataset, paths, wanted):
            return rows[0]
    uris = _uris_named(dataset, paths, image)
    if len(uris) == 1:
        return find_rows(dataset, paths, image_id(uris[0]))[0]
    shown = f"version {manifest.version} of {hide_secrets(dataset)}"
    if uris:
        named = ", ".join(map(shown_uri, uris[:_NAMED]))
        raise SettingsError(f"{shown} has {len(uris)} images {image!r}; name one uri: {named}")
    hint = _nearest(dataset, paths, image)
    raise SettingsError(f"{shown} has no image {hide_secrets(image)!r}{hint}")


def find_rows(
    dataset: str, paths: Sequence[str], wanted: str, accept: Callable[[Row], bool] | None = None
) -> list[Row]:
    """Return the rows of an image_id in some files, reading only row groups that may hold it."""
    read = partial(_rows_in, wanted=wanted)
    found = in_parallel(lambda path: read_with(dataset, path, read), paths)
    return [row for rows in found for row in rows if accept is None or accept(row)]


def _rows_in(stream: BinaryIO, wanted: str) -> list[Row]:
    file = pq.ParquetFile(stream)
    column = file.schema_arrow.get_field_index("image_id")
    rows: list[Row] = []
    for group in range(file.num_row_groups):
        told = file.metadata.row_group(group).column(column).statistics
        if told is not None and told.has_min_max and not told.min <= wanted <= told.max:
            continue
        ids = file.read_row_group(group, columns=["image_id"])["image_id"]
        places = pc.indices_nonzero(pc.equal(ids, wanted))
        if len(places):
            rows += file.read_row_group(group).take(places).to_pylist()
    return rows


def _uris_named(dataset: str, paths: Sequence[str], image: str) -> list[str]:
    """Return the uris that end with a file name or a part of a path."""
    ending = f"/{image.lstrip('/')}"
    tables = in_parallel(lambda path: read_columns(dataset, path, ["uri"]), paths)
    return [
        uri
        for table in tables
        for uri in table.filter(pc.ends_with(table["uri"], ending))["uri"].to_pylist()
    ]


def _nearest(dataset: str, paths: Sequence[str], image: str) -> str:
    if not paths:
        return ""
    names = [
        shown_uri(uri).rpartition("/")[2]
        for uri in read_columns(dataset, paths[0], ["uri"])["uri"].to_pylist()[:5000]
    ]
    near = difflib.get_close_matches(image.rpartition("/")[2], names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has for instance {names[0]!r}"
