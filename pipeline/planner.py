"""What is done, what is left, and what the next version consists of: one join, out of core.

The inventory and the keys of all finished rows go into a DuckDB database in a temporary folder,
which spills to disk where they outgrow its memory, so that neither is ever whole in memory.

A row is done when its image is in the inventory with the same etag and its fingerprint is of today.
Compact embeddings, and labels made from them, count only for who asks for compact ones. Of an image
that a person has corrected, and that has the same content still, the corrected row alone is done:
the same etag, or under another one or another uri the same bytes, as a finished row tells.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import itemgetter
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar, get_args

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.files import in_parallel
from pipeline.fingerprints import Fingerprints
from pipeline.parts import Share, read_columns
from pipeline.scratch_database import scratch_database
from pipeline.work_units import ROWS_PER_TODO_FILE, UNITS, Units, Work, write_units
from schemas.annotation import INVENTORY, LABELLED, MODEL, conform
from schemas.manifest import DataFile, EmbeddingsFile, Encoding

# Given up for now, not for good: the store did not answer. Done again by the next run.
RETRIED_CODES: Final = ("unavailable",)

F = TypeVar("F", DataFile, EmbeddingsFile)
T = TypeVar("T")

# Where finished rows come from: the newest version, a run that was cut short, or this run.
Origin = Literal["published", "adopted", "own"]

_FILES_AT_ONCE: Final = 32
_ROWS_AT_ONCE: Final = 8192  # out of the database
_MERGED_BYTES: Final = 64 * 2**20  # of embeddings, which are in memory while they are merged

_TABLES: Final = """
create table listed (image_id varchar, uri varchar, etag varchar, size_bytes bigint);
create table corrected (image_id varchar, etag varchar, fingerprint varchar, bytes_sha256 varchar,
                        drawn_on varchar, counts boolean);
create table rows (file integer, image_id varchar, etag varchar, fresh boolean, embeds boolean);
create table embedded (file integer, row_group integer, image_id varchar, etag varchar,
                       is_exact boolean, is_current boolean, relabels boolean,
                       reclassifies boolean);
create table before (image_id varchar);
create table inventory as select * from listed;
create table winner (image_id varchar, file integer);
create table recalled (image_id varchar, file integer, row_group integer, relabels boolean);
"""

# An inventory without an etag (a plain list of remote uris) cannot tell a changed image.
_SAME_CONTENT: Final = "(i.etag is null or k.etag = i.etag)"

# Neither done nor to be made from what is stored.
_TO_FETCH: Final = """
from inventory i where not exists (from winner w where w.image_id = i.image_id)
and not exists (from recalled r where r.image_id = i.image_id)
"""


@dataclass(frozen=True)
class Preview:
    """What is left to do, as numbers of images, and some of those to fetch."""

    fetch: int
    reclassify: int
    relabel: int
    sample: pa.Table  # INVENTORY


@dataclass(frozen=True)
class Uncorrected:
    """An image whose corrected row is still to be made."""

    image_id: str
    uri: str
    etag: str | None
    drawn_on: str  # the image_id of its correction: another one where it was moved since


@dataclass
class Outcome(Generic[F]):
    """Files of the next version: some as they are, some to be merged into new ones."""

    kept: list[F] = field(default_factory=list)
    merges: list[list[Share]] = field(default_factory=list)


class Planner:
    """Compares the inventory with what is done; use it as a context manager."""

    def __init__(
        self,
        fingerprints: Fingerprints,
        memory_mb: int,
        threads: int,
        keeps: Encoding | None = None,
    ) -> None:
        self._today = fingerprints
        self._keeps = keeps  # the embeddings that the run is asked to keep
        self._open = ExitStack()
        self._database = self._open.enter_context(
            scratch_database("plan", memory_mb, threads, setting="plan_memory_mb")
        )
        for statement in _TABLES.split(";"):
            self._database.execute(statement)
        self._files: list[DataFile] = []
        self._embeddings: list[EmbeddingsFile] = []
        self._own_from: int | None = None
        self._signatures: dict[str, str] = {}  # not in the database, which is a file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, traceback)  # which says what an error of DuckDB is

    def add_inventory(self, tables: Iterable[pa.Table]) -> int:
        """Take the images of the source, each uri once; return how many were repetitions."""
        for table in tables:
            self._insert("listed", "select image_id, uri, etag, size_bytes from arriving", table)
            signed = table.filter(pc.is_valid(table["signature"]))
            ids, signatures = (signed[name].to_pylist() for name in ("image_id", "signature"))
            self._signatures |= zip(ids, signatures, strict=True)
        self._database.execute(
            "create or replace table inventory as "
            "select image_id, any_value(uri) uri, any_value(etag) etag, "
            "any_value(size_bytes) size_bytes from listed group by image_id"
        )
        repeated = self._number("select count(*) from listed") - self.images
        self._database.execute("drop table listed")
        return repeated

    def add_corrections(self, corrections: pa.Table) -> None:
        """Take what people have corrected: image_id, etag, bytes and fingerprint of today's row.

        Call it after the inventory and before finished rows.
        """
        self._insert(
            "corrected",
            "select k.image_id, k.etag, k.fingerprint, k.bytes_sha256, k.image_id, "
            f"i.image_id is not null and coalesce({_SAME_CONTENT}, false) "
            "from arriving k left join inventory i using (image_id)",
            corrections,
        )

    def uncorrected(self) -> list[Uncorrected]:
        """Return the images whose corrected rows are still to be made."""
        found = self._database.execute(
            "select image_id, i.uri, coalesce(i.etag, c.etag), c.drawn_on from corrected c "
            "join inventory i using (image_id) where c.counts and not exists (from rows k "
            f"where k.image_id = c.image_id and k.fresh and {_SAME_CONTENT}) order by image_id"
        ).fetchall()
        return [Uncorrected(*row) for row in found]

    @property
    def images(self) -> int:
        """How many images the inventory holds."""
        return self._number("select count(*) from inventory")

    def add_done(
        self,
        dataset: str,
        files: Sequence[DataFile],
        embeddings: Sequence[EmbeddingsFile],
        origin: Origin,
        *,
        retried: Collection[str] | None = RETRIED_CODES,
    ) -> None:
        """Take finished rows; of one image those of a file added later win.

        `retried` are the error codes of quarantined images that are not done; None: all.
        """
        if origin == "own" and self._own_from is None:
            self._own_from = len(self._files)
        first = len(self._files)
        self._files += files
        columns = ["image_id", "etag", "fingerprint", "status", "annotator", "error"]
        touched = self._number(
            "select count(*) from corrected where not counts and bytes_sha256 is not null"
        )
        columns += ["bytes_sha256"] * bool(touched)
        given_up = _given_up(() if origin == "own" else retried)  # this run has tried its own
        for number, table in _read_many(dataset, [file.path for file in files], columns):
            if touched:
                self._recognise(table)
            self._add_rows(first + number, table, given_up)
            if origin == "published":
                self._insert("before", "select image_id from arriving", table)
        first = len(self._embeddings)
        self._embeddings += embeddings
        keys = ("image_id", "etag", "proposal_fingerprint", "embedding_fingerprint")
        for number, table in _read_many(dataset, [file.path for file in embeddings], keys):
            self._add_embeddings(first + number, table)

    def _recognise(self, table: pa.Table) -> None:
        """Let corrections count that by these rows are of the same bytes as an image.

        It is the image that was corrected, under another etag, or one under another uri: of a tar
        that was packed anew all images have others.
        """
        self._database.register("arriving", table.select(["image_id", "etag", "bytes_sha256"]))
        found = self._database.execute(
            "insert into corrected select distinct on (k.image_id) "
            "k.image_id, k.etag, c.fingerprint, c.bytes_sha256, c.drawn_on, true "
            f"from arriving k join inventory i on i.image_id = k.image_id and {_SAME_CONTENT} "
            "join corrected c on c.bytes_sha256 = k.bytes_sha256 and not c.counts "
            "where not exists (from corrected o where o.image_id = k.image_id and o.counts) "
            "order by k.image_id, c.drawn_on = k.image_id desc, c.drawn_on returning image_id"
        ).fetchall()
        self._database.unregister("arriving")
        if found:  # what a model made of such an image is not done any more
            self._database.execute(
                "update rows set fresh = false where list_contains($ids, image_id)",
                {"ids": [image_id for (image_id,) in found]},
            )

    def _add_rows(self, number: int, table: pa.Table, given_up: str) -> None:
        code = pc.struct_field(table["error"], "code")
        self._insert(
            "rows",
            "select $file, a.image_id, a.etag, "
            "case when c.image_id is not null then a.fingerprint = c.fingerprint "
            "when status = $labelled then list_contains($labels, a.fingerprint) "
            f"else list_contains($quarantined, a.fingerprint) and {given_up} end, "
            "status = $labelled and annotator = $model "
            "from arriving a left join (from corrected where counts) c using (image_id)",
            table.drop_columns(["error"]).append_column("code", code),
            {
                "file": number,
                "labelled": LABELLED,
                "model": MODEL,
                "labels": self._labels_of_today,
                "quarantined": list(self._today.of_quarantined),
            },
        )

    @property
    def _labels_of_today(self) -> list[str]:
        today = self._today
        return [today.label, today.label_of_compact] if self._keeps == "compact" else [today.label]

    def _add_embeddings(self, number: int, table: pa.Table) -> None:
        file = self._embeddings[number]
        is_exact = file.encoding == "exact"
        groups = [row // file.rows_per_group for row in range(len(table))]
        self._insert(
            "embedded",
            "select $file, row_group, image_id, etag, $exact, embedding_fingerprint = $embedding, "
            "embedding_fingerprint = $embedding and $labels, "
            "proposal_fingerprint = $proposal and $exact from arriving",
            table.append_column("row_group", pa.array(groups, pa.int32())),
            {
                "file": number,
                "embedding": self._today.embedding,
                "labels": is_exact or self._keeps == "compact",
                "proposal": self._today.proposal,
                "exact": is_exact,
            },
        )

    def left(self, dataset: str, run_id: str) -> Work:
        """Return what is not done, written as units to the dataset.

        Where embeddings are to be kept, an image that a model labelled and whose own are not stored
        is not done.
        """
        self._compare()
        return Work(
            fetch=self._fetch_units(dataset, run_id),
            reclassify=self._recall_units(relabels=False),
            relabel=self._recall_units(relabels=True),
        )

    def preview(self, most: int) -> Preview:
        """Return what `left` would, as numbers, and up to `most` images to try; write nothing.

        The images are the same each time, and spread over the inventory.
        """
        self._compare()
        fetch = self.images - self._number("select count(*) from winner")
        fetch -= self._number("select count(*) from recalled")
        table = self._database.sql(
            f"select i.* {_TO_FETCH} order by hash(i.image_id) limit {most:d}"
        ).to_arrow_table()
        ids = table["image_id"].to_pylist()
        signatures = pa.array([self._signatures.get(image_id) for image_id in ids], pa.string())
        return Preview(
            fetch=fetch,
            reclassify=self._number("select count(*) from recalled where not relabels"),
            relabel=self._number("select count(*) from recalled where relabels"),
            sample=conform(table.append_column("signature", signatures), INVENTORY),
        )

    def _compare(self) -> None:
        self._choose()
        self._create(
            "recalled",
            "select i.image_id, k.file, k.row_group, k.relabels, "
            "(k.relabels, k.reclassifies, k.file) rank "  # exact embeddings before compact ones
            "from inventory i join embedded k using (image_id) "
            # Pixels that are fetched again must be those of the stored proposals.
            f"where (k.relabels and {_SAME_CONTENT} or k.reclassifies and k.etag = i.etag) "
            "and not exists (from winner w where w.image_id = i.image_id)",
            "max_by(file, rank) file, max_by(row_group, rank) row_group, max(relabels) relabels",
        )

    def _choose(self) -> None:
        unstored = (
            "k.embeds and not exists (from embedded e where e.image_id = k.image_id "
            "and e.relabels and e.etag is not distinct from k.etag)"
        )
        self._create(
            "winner",
            "select i.image_id, k.file, k.etag, k.embeds from inventory i "
            f"join rows k using (image_id) where k.fresh and {_SAME_CONTENT}",
            "max(file) file",
            unless=unstored if self._keeps else "false",
        )

    def _create(
        self, name: str, joined: str, chosen: str, unless: str = "false", by: str = "image_id"
    ) -> None:
        """Create a table of what is chosen for each image of a join, whose rows are `k`.

        One step a statement: those of one share the memory, and DuckDB fails where it should spill.
        """
        self._database.execute(f"create or replace table joined as {joined}")
        self._database.execute(f"delete from joined k where {unless}")
        self._database.execute(
            f"create or replace table {name} as select {by}, {chosen} from joined group by {by}"
        )
        self._database.execute("drop table joined")

    def _fetch_units(self, dataset: str, run_id: str) -> Units:
        done = self._number("select count(*) from winner")
        images = self.images - done - self._number("select count(*) from recalled")
        reader = self._database.sql(
            f"select i.image_id, i.uri, i.etag, i.size_bytes {_TO_FETCH} order by i.uri"
        ).to_arrow_reader(ROWS_PER_TODO_FILE)
        return write_units(dataset, run_id, reader, images, self._signatures_of)

    def _signatures_of(self, image_ids: Iterable[str]) -> list[str | None] | None:
        if not self._signatures:
            return None
        return [self._signatures.get(image_id) for image_id in image_ids]

    def _recall_units(self, *, relabels: bool) -> Units:
        # Sorted, not as lists: these DuckDB does not spill.
        found = self._database.execute(
            "select file, row_group, image_id from recalled where relabels = $relabels "
            "order by all",
            {"relabels": relabels},
        )
        rows = chain.from_iterable(iter(lambda: found.fetchmany(_ROWS_AT_ONCE), []))
        units, images = [], 0
        for (number, group), taken in groupby(rows, itemgetter(0, 1)):
            ids = [image_id for _, _, image_id in taken]
            images += len(ids)
            file = self._embeddings[number]
            in_group = min(file.rows_per_group, file.rows - group * file.rows_per_group)
            # To label again takes no pixels, so that nothing has to be opened.
            signatures = None if relabels else self._signatures_of(ids)
            named = signatures is not None or len(ids) < in_group
            units.append(
                {
                    "path": file.path,
                    "row_group": group,
                    "image_ids": ids if named else None,
                    "signatures": signatures,
                }
            )
        return Units(pa.Table.from_pylist(units, schema=UNITS), images)

    def outcome(self, rows_per_file: int) -> Outcome[DataFile]:
        """Return the files of the next version; call it when nothing is left.

        A file of which every row counts and that is large enough stays as it is; the rows that
        count of all others are merged.
        """
        found = self._database.execute(
            "select file, count(*) from winner group by file order by file"
        ).fetchall()
        outcome, small = Outcome[DataFile](), []
        for number, count in found:
            file = self._files[number]
            whole = count == file.rows
            if whole and file.rows * 2 > rows_per_file:
                outcome.kept.append(file)
            else:
                small.append((number, count, whole))
        for group in _groups(small, rows_per_file, itemgetter(1)):
            if len(group) == 1 and group[0][2]:
                outcome.kept.append(self._files[group[0][0]])
            else:
                outcome.merges.append([self._share(number, count) for number, count, _ in group])
        return outcome

    def _share(self, number: int, count: int) -> Share:
        """Return the rows of a file that count, told by the fewer ids: all shares are held."""
        file = self._files[number]
        if count == file.rows:
            return Share(file.path)
        taken = "select image_id from winner where file = $file"
        if count * 2 <= file.rows:
            return Share(file.path, self._ids(taken, number))
        left_out = f"select image_id from rows where file = $file except {taken}"
        return Share(file.path, without=self._ids(left_out, number))

    def _ids(self, query: str, number: int) -> frozenset[str]:
        found = self._database.execute(query, {"file": number}).fetchall()
        return frozenset(image_id for (image_id,) in found)

    def embeddings(self) -> Outcome[EmbeddingsFile]:
        """Return the files of embeddings of which a row is of use.

        Of small ones those rows are merged, or a night of few images would add files for ever.
        """
        # Of an image exact and compact ones may be of use, of each kind once.
        self._create(
            "useful",
            "select i.image_id, k.is_exact, k.file, (k.is_current, k.file) rank "
            "from inventory i join embedded k using (image_id) "
            f"where {_SAME_CONTENT} and (k.is_current or k.reclassifies)",
            "max_by(file, rank) file",
            by="image_id, is_exact",
        )
        counts = self._database.execute(
            "select file, count(*) from useful group by file order by file"
        ).fetchall()
        small = [
            (number, count)
            for number, count in counts
            if self._embeddings[number].size_bytes * 2 <= _MERGED_BYTES
        ]
        groups = [
            group
            for encoding in get_args(Encoding)
            for group in _groups(
                [one for one in small if self._embeddings[one[0]].encoding == encoding],
                _MERGED_BYTES,
                lambda one: self._embeddings[one[0]].size_bytes,
            )
            if len(group) > 1
        ]
        merged = {number for group in groups for number, _ in group}
        shares = self._shares_of_embeddings([one for one in small if one[0] in merged])
        return Outcome(
            kept=[self._embeddings[number] for number, _ in counts if number not in merged],
            merges=[[shares[number] for number, _ in group] for group in groups],
        )

    def _shares_of_embeddings(self, files: Sequence[tuple[int, int]]) -> dict[int, Share]:
        """Return the rows of use of files, given as numbers and counts of these rows."""
        paths = {number: self._embeddings[number].path for number, _ in files}
        partly = {number for number, count in files if count < self._embeddings[number].rows}
        self._database.execute(
            "create or replace table partly as select unnest($files) file", {"files": [*partly]}
        )
        rows = self._database.execute(
            "select file, image_id from useful semi join partly using (file) order by file"
        ).fetchall()
        ids = {
            number: frozenset(image_id for _, image_id in taken)
            for number, taken in groupby(rows, itemgetter(0))
        }
        return {number: Share(path, ids.get(number)) for number, path in paths.items()}

    def own(self) -> int:
        """Return how many images of the next version this run has done itself."""
        first = len(self._files) if self._own_from is None else self._own_from
        return self._number("select count(*) from winner where file >= $first", {"first": first})

    def removed(self) -> int:
        """Return how many images of the version before are not in the inventory."""
        return self._number(
            "select count(*) from before b "
            "where not exists (from inventory i where i.image_id = b.image_id)"
        )

    def _insert(
        self, target: str, query: str, arriving: pa.Table, values: Mapping[str, Any] | None = None
    ) -> None:
        self._database.register("arriving", arriving)
        self._database.execute(f"insert into {target} {query}", dict(values or {}))
        self._database.unregister("arriving")

    def _number(self, query: str, values: Mapping[str, Any] | None = None) -> int:
        ((number,),) = self._database.execute(query, dict(values or {})).fetchall()
        return int(number)


def _given_up(retried: Collection[str] | None) -> str:
    """Return the condition under which a quarantined row counts as done."""
    if retried is None:
        return "false"
    return f"not list_contains({list(retried)}::varchar[], coalesce(code, ''))"


def _read_many(
    dataset: str, paths: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number of each file and some of its columns, read a few at a time."""
    for start in range(0, len(paths), _FILES_AT_ONCE):
        window = paths[start : start + _FILES_AT_ONCE]
        tables = in_parallel(lambda path: read_columns(dataset, path, columns), window)
        yield from enumerate(tables, start)


def _groups(small: Sequence[T], most: int, size_of: Callable[[T], int]) -> list[list[T]]:
    """Return files in groups that are together of at most that size, but for single larger ones."""
    groups: list[list[T]] = []
    room = 0
    for item in small:
        if size_of(item) > room:
            groups.append([])
            room = most
        groups[-1].append(item)
        room -= size_of(item)
    return groups
