"""Where an export writes: files whole or absent, and pieces of shards that become one file.

export.json             written last: what the export holds, and of which version
index.jsonl             a line per image: its names, place and split
left_out.jsonl          a line per image that could not be had, with the reason
_export/plan.json       while it is at work: which export this is
_export/shards/N.json   what a finished shard holds
_export/pieces/NAME/N   lines of a shard that go into one file with those of the others
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from pipeline.files import (
    delete_files,
    in_parallel,
    list_facts,
    list_files,
    open_whole,
    read_bytes,
    write_bytes,
)
from pipeline.metrics import truth_ignore
from pipeline.storage import hide_secrets
from schemas.errors import OutputError

WORK: Final = "_export"
SHARDS: Final = f"{WORK}/shards"
PIECES: Final = f"{WORK}/pieces"
INDEX: Final = "index.jsonl"
LEFT_OUT: Final = "left_out.jsonl"

_PIECES_AT_ONCE: Final = 64
_BYTES_AT_ONCE: Final = 32 * 2**20


@dataclass(frozen=True)
class Export:
    """One export: its place, and what its formats must know of the dataset."""

    url: str
    dataset: str  # without secrets
    version: int
    fingerprint: str
    classes: tuple[str, ...]
    num_shards: int
    has_images: bool  # image files are beside the labels

    @property
    def ignore(self) -> int:
        """What pixels of no class hold in a label map: 255, or 65535 where 255 is a class."""
        return truth_ignore(len(self.classes))

    def write(self, path: str, data: bytes) -> None:
        """Write one file whole, in place of what was there."""
        write_bytes(self.url, path, data)

    def write_json(self, path: str, content: Mapping[str, Any]) -> None:
        """Write one file of JSON."""
        self.write(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open one file to write it bit by bit; it is there once it is whole."""
        return open_whole(self.url, path)

    def lines(self, name: str) -> Iterator[bytes]:
        """Yield the lines of all shards in order, a few small shards or a large one in memory.

        Raises OutputError where another call has finished this export meanwhile.
        """
        facts = list_facts(self.url, f"{PIECES}/{name}")
        places = (piece_path(name, number) for number in range(self.num_shards))
        pieces = {path: facts[path].size_bytes for path in places if path in facts}
        if len(pieces) < self.num_shards:
            self._check_records()  # a shard may have had no lines
        for paths in _in_groups(pieces):
            try:
                found = in_parallel(lambda path: read_bytes(self.url, path), paths)
            except FileNotFoundError:
                raise self._finished() from None
            for data in found:
                # Not splitlines: JSON leaves other line breaks of Unicode as they are.
                yield from data.removesuffix(b"\n").split(b"\n")

    def _check_records(self) -> None:
        # While all are there, no piece of theirs has been deleted.
        if not {record_path(number) for number in range(self.num_shards)}.issubset(
            list_files(self.url, SHARDS)
        ):
            raise self._finished()

    def _finished(self) -> OutputError:
        return OutputError(
            f"another call has finished the export into {hide_secrets(self.url)} meanwhile, "
            "and what this one was to join is gone; the export is whole"
        )

    def forget(self, shards: Iterable[int]) -> None:
        """Delete what some shards left for the joining of all, as if they had not been written."""
        numbers = set(shards)
        delete_files(self.url, [record_path(number) for number in numbers])
        names = {f"{number:08}" for number in numbers}
        pieces = list_files(self.url, PIECES)
        delete_files(self.url, [path for path in pieces if path.rpartition("/")[2] in names])

    def tidy(self) -> None:
        """Delete all that is needed only while the export is at work.

        Records first: who misses a piece looks for the record to know whether there was one.
        """
        delete_files(self.url, list_files(self.url, SHARDS))
        delete_files(self.url, list_files(self.url, WORK))

    def write_lines(self, path: str, name: str) -> None:
        """Write the lines of all shards as one file."""
        with self.open(path) as file:
            for line in self.lines(name):
                file.write(line + b"\n")

    def write_document(
        self, path: str, head: Mapping[str, Any], lists: Mapping[str, Iterable[bytes]]
    ) -> None:
        """Write one JSON object: `head`, and lists whose items are lines of JSON."""
        with self.open(path) as file:
            file.write(b"{\n")
            separator = b""
            for key, value in head.items():
                text = f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
                file.write(separator + text.encode())
                separator = b",\n"
            for key, items in lists.items():
                file.write(separator + json.dumps(key).encode() + b": ")
                write_array(file, items)
                separator = b",\n"
            file.write(b"\n}\n")


def _in_groups(pieces: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield the paths of pieces in order, by their bytes as many as may be in memory together."""
    group: list[str] = []
    total = 0
    for path, size_bytes in pieces.items():
        if group and (len(group) == _PIECES_AT_ONCE or total + size_bytes > _BYTES_AT_ONCE):
            yield group
            group, total = [], 0
        group.append(path)
        total += size_bytes
    if group:
        yield group


def write_array(file: BinaryIO, items: Iterable[bytes]) -> None:
    """Write a JSON array whose items are lines of JSON."""
    file.write(b"[")
    for index, item in enumerate(items):
        file.write((b",\n" if index else b"\n") + item)
    file.write(b"\n]")


@dataclass
class Shard:
    """One shard of an export, while it is written."""

    export: Export
    number: int
    pieces: dict[str, list[bytes]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What names its files: `00003-of-00120`."""
        return f"{self.number:05}-of-{self.export.num_shards:05}"

    def add(self, name: str, content: Mapping[str, Any]) -> None:
        """Add one line of JSON to the piece of this name."""
        self.add_line(name, json.dumps(content, ensure_ascii=False, separators=(",", ":")))

    def add_line(self, name: str, line: str) -> None:
        """Add one line of text, which holds no line break, to the piece of this name."""
        self.pieces.setdefault(name, []).append(line.encode())

    def write_pieces(self) -> None:
        """Write what was added."""
        for name, lines in self.pieces.items():
            self.export.write(piece_path(name, self.number), b"\n".join(lines) + b"\n")


def piece_path(name: str, number: int) -> str:
    """Return where a shard's lines of one name are until all shards are done."""
    return f"{PIECES}/{name}/{number:08}"


def record_path(number: int) -> str:
    """Return where the record of a finished shard is."""
    return f"{SHARDS}/{number:08}.json"
