"""The kept proposals of a version, as units for measuring."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.proposals import ProposalUnit
from pipeline.parts import read_columns
from pipeline.storage import hide_secrets
from schemas.annotation import LABELLED
from schemas.errors import SettingsError
from schemas.manifest import Manifest

_KEYS: Final = ("image_id", "etag")


def require_kept(dataset: str, manifest: Manifest) -> None:
    """Raise SettingsError unless the version keeps proposals and says how to read them."""
    shown = f"version {manifest.version} of {hide_secrets(dataset)}"
    if not any(file.encoding == "exact" for file in manifest.embeddings):
        raise SettingsError(
            f"proposals cannot be measured: {shown} keeps none; annotate with --keep-embeddings "
            "exact"
        )
    if not {"divisor", "proposal_fingerprint"} <= manifest.models.keys():
        raise SettingsError(
            f"proposals cannot be measured: the manifest of {shown} does not tell how their masks "
            "were padded; annotate into a new dataset"
        )


def kept_units(
    dataset: str, manifest: Manifest, truth_of: Callable[[str], Path | None]
) -> Iterator[ProposalUnit]:
    """Yield the proposals of the labelled images that have a truth (by URI), each image once.

    Rows of images that have changed since, or of another proposer, are passed over.
    """
    for number, ranks in _current_rows(dataset, manifest):
        path, rows_per_group = (
            manifest.embeddings[number].path,
            manifest.embeddings[number].rows_per_group,
        )
        keys = read_columns(dataset, path, ("image_id", "uri")).take(ranks)
        by_group: dict[int, dict[str, str]] = {}
        for rank, image_id, uri in zip(
            ranks.to_pylist(), keys["image_id"].to_pylist(), keys["uri"].to_pylist(), strict=True
        ):
            by_group.setdefault(rank // rows_per_group, {})[image_id] = uri
        for row_group, uris in by_group.items():
            found = {image_id: truth_of(uri) for image_id, uri in uris.items()}
            with_truth = {name: truth for name, truth in found.items() if truth is not None}
            if with_truth:
                yield ProposalUnit(path, row_group, with_truth)


def _current_rows(dataset: str, manifest: Manifest) -> Iterator[tuple[int, pa.Array]]:
    """Yield files of embeddings by number, with the ranks of those of their rows that count."""
    with duckdb.connect() as database:
        database.execute("create table images (image_id varchar, etag varchar)")
        database.execute(
            "create table kept (file integer, row integer, image_id varchar, etag varchar)"
        )
        for part in manifest.images:
            arriving = read_columns(dataset, part.path, (*_KEYS, "status"))
            arriving = arriving.filter(pc.equal(arriving["status"], LABELLED))
            database.execute("insert into images select image_id, etag from arriving")
        for number, stored in enumerate(manifest.embeddings):
            if stored.encoding != "exact":
                continue
            arriving = read_columns(dataset, stored.path, (*_KEYS, "proposal_fingerprint"))
            rows = pa.array(range(len(arriving)), pa.int32())
            arriving = arriving.append_column("row", rows)
            database.execute(
                "insert into kept select $file, row, image_id, etag from arriving "
                "where proposal_fingerprint = $fingerprint",
                {"file": number, "fingerprint": manifest.models["proposal_fingerprint"]},
            )
        database.execute(
            "create table winner as select max((k.file, k.row)) place from kept k "
            "join images i on i.image_id = k.image_id and i.etag is not distinct from k.etag "
            "group by k.image_id"
        )
        for number in range(len(manifest.embeddings)):
            found = database.execute(
                "select place[2] from winner where place[1] = $file order by all", {"file": number}
            ).fetchall()
            if found:
                yield number, pa.array([row for (row,) in found], pa.int32())
