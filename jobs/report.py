"""`segmill report`: one self-contained HTML page to look at a dataset."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from jobs.evaluate import evaluate
from pipeline.dataset import read_manifest, read_rows
from pipeline.decode import BadImage, decode_image
from pipeline.evaluation.result import EvaluateResult
from pipeline.fetching import Request, fetch
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
from pipeline.stages.fetch import fetch_settings
from pipeline.storage import describe, hide_secrets, store_errors
from pipeline.truth import Truths, read_label_map
from pipeline.whole_file import whole_file
from schemas.annotation import LABELLED, QUARANTINED
from schemas.config import EvaluateConfig, ReportConfig, SourceSettings
from schemas.errors import OutputError
from schemas.manifest import DataFile, Manifest
from schemas.vocabulary import Vocabulary

_CARD_COLUMNS = (
    "uri", "bytes_sha256", "height", "width", "status", "coverage", "mean_score", "segments",
)  # fmt: skip
_BATCH_ROWS = 32


@dataclass(frozen=True)
class ReportResult:
    """Where the page is and what it shows."""

    output: Path
    images: int
    unreadable: int  # images on the page whose file cannot be read any more
    quarantined: int  # quarantined images that are listed


@dataclass
class _Cards:
    """The cards of the page, made one by one while it is written; counts what it made."""

    dataset: str
    manifest: Manifest
    chosen: Sequence[int]  # ranks among the labelled rows, ascending
    truths: Truths | None
    limits: SourceSettings
    made: int = field(default=0, init=False)
    unreadable: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Card]:
        wanted = set(self.chosen)
        rank = 0
        for part in self.manifest.images:
            ranks = range(rank, rank + part.labelled)
            rank += part.labelled
            if wanted.isdisjoint(ranks):
                continue  # unread: a large dataset has far more files than the page has images
            labelled = _rows(self.dataset, self.manifest, part, LABELLED, _CARD_COLUMNS)
            for index, row in zip(ranks, labelled, strict=False):
                if index in wanted:
                    yield self._card(row.to_pylist()[0], self.manifest.vocabulary)

    def _card(self, row: Mapping[str, Any], vocabulary: Vocabulary) -> Card:
        photo = _read_photo(row["uri"], row["bytes_sha256"], self.limits)
        truth_path = self.truths.of(row["uri"]) if self.truths else None
        truth_HW = read_label_map(truth_path) if truth_path else None
        try:
            card = make_card(row, vocabulary, photo, truth_HW)
        except ValueError as error:
            raise OutputError(f"labels of {hide_secrets(row['uri'])}: {error}") from None
        self.made += 1
        self.unreadable += card.photo is None
        return card


def report(config: ReportConfig) -> ReportResult:
    """Write the page; with a truth, compare first and show the figures.

    The images are spread evenly through the dataset. Raises SettingsError when the dataset or the
    truth cannot be read, or the page cannot be written; a page that was there is then kept.
    """
    manifest = read_manifest(config.dataset, config.version)
    with whole_file(config.output) as file:
        figures = truths = None
        if config.truth is not None:
            truths = Truths.find(config.truth)
            figures = _figures(_compare(config, config.truth, manifest), manifest.vocabulary)
        chosen = _spread(manifest.counts.labelled, config.max_images)
        limits = _limits(manifest)
        cards = _Cards(config.dataset, manifest, chosen, truths, limits)
        page = Page(
            dataset=hide_secrets(config.dataset),
            manifest=manifest,
            figures=figures,
            num_cards=len(chosen),
            has_truth=truths is not None,
        )
        write_page(file, page, cards, _refusals(config.dataset, manifest))
    return ReportResult(
        output=config.output,
        images=cards.made,
        unreadable=cards.unreadable,
        quarantined=min(manifest.counts.quarantined, MAX_REFUSALS),
    )


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
    """Yield the rows of one file that have `status`, each as a table, few at a time in memory."""
    alone = manifest.model_copy(update={"images": (part,)})
    with store_errors(f"read {part.path} of", dataset, OutputError):
        for table in read_rows(dataset, alone, columns, _BATCH_ROWS):
            for index, found in enumerate(table["status"].to_pylist()):
                if found == status:
                    yield table.slice(index, 1)


def _refusals(dataset: str, manifest: Manifest) -> Iterator[Refusal]:
    left = MAX_REFUSALS
    for part in manifest.images:
        if not part.quarantined:
            continue
        for row in _rows(dataset, manifest, part, QUARANTINED, ("uri", "status", "error")):
            if not left:
                return
            left -= 1
            yield make_refusal(row.to_pylist()[0])


def _limits(manifest: Manifest) -> SourceSettings:
    """Return the limits under which the run accepted its images."""
    recorded = manifest.config.keys() & SourceSettings.model_fields.keys()
    return SourceSettings(**{name: manifest.config[name] for name in recorded})


def _read_photo(uri: str, sha256: str | None, limits: SourceSettings) -> Image.Image | str:
    """Return the image as it was labelled, or in words why it cannot be shown."""
    (data,) = fetch([Request(uri)], fetch_settings(limits))
    if isinstance(data, Exception):
        return f"cannot read {hide_secrets(uri)}: {describe(data)}"
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        return "the file changed since it was labelled"
    try:
        # In this process: the run decoded the very same bytes without harm.
        return decode_image(data, limits.max_image_pixels, limits.max_image_frames).image
    except BadImage as error:
        return str(error)
