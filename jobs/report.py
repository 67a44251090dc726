"""`segmill report`: one self-contained HTML page to look at a dataset."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.evaluate import evaluate
from pipeline.dataset import read_manifest, read_rows, read_uris
from pipeline.evaluation.result import EvaluateResult
from pipeline.overview import COLUMNS, Overview
from pipeline.photos import Photos
from pipeline.report import (
    MAX_REFUSALS,
    Card,
    Figures,
    Page,
    Refusal,
    make_card,
    make_class_figures,
    make_refusal,
    write_page,
)
from pipeline.storage import hide_secrets
from pipeline.throughput import runs_of
from pipeline.truth import Truths, read_label_map
from pipeline.whole_file import whole_file
from schemas.annotation import LABELLED, QUARANTINED
from schemas.errors import OutputError
from schemas.evaluate_config import EvaluateConfig
from schemas.manifest import DataFile, Manifest
from schemas.report_config import ReportConfig
from schemas.vocabulary import Vocabulary

_CARD_COLUMNS = (
    "uri", "bytes_sha256", "height", "width", "status", "coverage", "mean_score", "segments",
)  # fmt: skip
_BATCH_ROWS = 256
_CARD_TEXT_BYTES: Final = 3_000  # about what a card takes beside its pictures
_PAGE_TEXT_BYTES: Final = 400_000  # and the page beside its cards


@dataclass(frozen=True)
class ReportResult:
    """Where the page is and what it shows."""

    output: Path
    images: int
    left_out: int  # images for which the page had no room
    unreadable: int  # images on the page whose file cannot be read any more
    quarantined: int  # quarantined images that are listed
    size_bytes: int


@dataclass
class _Cards:
    """The cards of the page, made one by one while it is written; counts what it made."""

    dataset: str
    manifest: Manifest
    chosen: Mapping[int, tuple[str, ...]]  # ranks among the labelled rows -> why they were chosen
    truths: Mapping[str, Path]  # by URI
    room_bytes: float
    made: int = field(default=0, init=False)
    unreadable: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Card]:
        photos = Photos.of(self.manifest)
        for rank, row in self._rows():
            if self.room_bytes <= 0:
                return
            card = self._card(row, self.manifest.vocabulary, photos, self.chosen[rank])
            self.room_bytes -= card.pictures_bytes + _CARD_TEXT_BYTES
            yield card

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        wanted = np.array(sorted(self.chosen), dtype=np.int64)
        rank = 0
        for part in self.manifest.images:
            if not ((wanted >= rank) & (wanted < rank + part.labelled)).any():
                rank += part.labelled
                continue  # unread: a large dataset has far more files than the page has images
            for table in _rows(self.dataset, self.manifest, part, LABELLED, _CARD_COLUMNS):
                here = wanted[(wanted >= rank) & (wanted < rank + len(table))]
                rows = table.take(pa.array(here - rank)).to_pylist()
                yield from zip(here.tolist(), rows, strict=True)
                rank += len(table)

    def _card(
        self,
        row: Mapping[str, Any],
        vocabulary: Vocabulary,
        photos: Photos,
        picked: tuple[str, ...],
    ) -> Card:
        photo = photos.read(row["uri"], row["bytes_sha256"])
        truth_path = self.truths.get(row["uri"])
        truth_HW = read_label_map(truth_path) if truth_path else None
        try:
            card = make_card(row, vocabulary, photo, truth_HW, picked)
        except ValueError as error:
            raise OutputError(f"labels of {hide_secrets(row['uri'])}: {error}") from None
        self.made += 1
        self.unreadable += card.photo is None
        return card

    @property
    def left_out(self) -> int:
        """How many chosen images were not made: the page had no room."""
        return len(self.chosen) - self.made


def report(config: ReportConfig) -> ReportResult:
    """Write the page; with a truth, compare first and show the figures.

    Raises SettingsError when the dataset or the truth cannot be read, or the page cannot be
    written; a page that was there is then kept.
    """
    manifest = read_manifest(config.dataset, config.version)
    with whole_file(config.output) as file:
        figures, truths = None, {}
        if config.truth is not None:
            uris = read_uris(config.dataset, manifest)
            truths = Truths.find(config.truth).paired(uris)
            figures = _figures(_compare(config, config.truth, manifest), manifest.vocabulary)
        overview = _overview(config, manifest)
        chosen = _choose(overview, config.max_images)
        room = config.max_page_mb * 1e6 - _PAGE_TEXT_BYTES
        cards = _Cards(config.dataset, manifest, chosen, truths, room)
        page = Page(
            dataset=hide_secrets(config.dataset),
            manifest=manifest,
            figures=figures,
            overview=overview,
            runs=runs_of(config.dataset, manifest.version),
            num_cards=len(chosen),
            has_truth=config.truth is not None,
        )
        write_page(file, page, cards, _refusals(config.dataset, manifest))
    return ReportResult(
        output=config.output,
        images=cards.made,
        left_out=cards.left_out,
        unreadable=cards.unreadable,
        quarantined=min(manifest.counts.quarantined, MAX_REFUSALS),
        size_bytes=config.output.stat().st_size,
    )


def _overview(config: ReportConfig, manifest: Manifest) -> Overview:
    tables = (
        table
        for part in manifest.images
        for table in _rows(config.dataset, manifest, part, LABELLED, COLUMNS)
    )
    keep = min(config.max_images, manifest.counts.labelled) // 4
    return Overview.of(tables, len(manifest.vocabulary), keep)


def _choose(overview: Overview, wanted: int) -> dict[int, tuple[str, ...]]:
    """Return the ranks of the images to show, and for each why."""
    reasons: dict[int, tuple[str, ...]] = {}
    for reason, ranks in (
        ("worst", overview.worst.ranks()),
        ("uncertain", overview.uncertain.ranks()),
    ):
        for rank in ranks:
            reasons[rank] = (*reasons.get(rank, ()), reason)
    chosen = np.array(sorted(reasons), dtype=np.int64)
    left_before = chosen - np.arange(len(chosen))  # ranks not chosen below each chosen one
    for index in _spread(overview.labelled - len(chosen), wanted - len(chosen)):
        rank = index + int(np.searchsorted(left_before, index, side="right"))
        reasons[rank] = ("spread",)
    return reasons


def _compare(config: ReportConfig, truth: str, manifest: Manifest) -> EvaluateResult:
    # The version is named: a run may publish another one while the page is made.
    return evaluate(EvaluateConfig(dataset=config.dataset, truth=truth, version=manifest.version))


def _figures(result: EvaluateResult, vocabulary: Vocabulary) -> Figures:
    headline = {
        "Seen mIoU": result.headline.seen_miou,
        "Unseen mIoU": result.headline.unseen_miou,
        "hIoU": result.headline.hiou,
        "mIoU": result.headline.miou,
        "Pixel accuracy": result.pixel_accuracy,
    }
    known = {name: value for name, value in headline.items() if value is not None}
    return Figures(result.images, known, make_class_figures(vocabulary, result.class_iou))


def _spread(total: int, wanted: int) -> list[int]:
    """Return `wanted` of the numbers below `total` (all if there are fewer), evenly apart."""
    count = min(total, wanted)
    return [index * total // count for index in range(count)]


def _rows(
    dataset: str, manifest: Manifest, part: DataFile, status: str, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield the rows of one file that have `status`, some at a time."""
    alone = manifest.model_copy(update={"images": (part,)})
    for table in read_rows(dataset, alone, columns, _BATCH_ROWS):
        yield table.filter(pc.equal(table["status"], status))


def _refusals(dataset: str, manifest: Manifest) -> Iterator[Refusal]:
    left = MAX_REFUSALS
    for part in manifest.images:
        if not (part.quarantined and left):
            continue
        for table in _rows(dataset, manifest, part, QUARANTINED, ("uri", "status", "error")):
            yield from map(make_refusal, table.slice(0, left).to_pylist())
            left = max(0, left - len(table))
