"""What one HTML page shows of a dataset: cards with thumbnails, legends, figures; no file is read.

Dimension key: H height, W width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, Final, TextIO

import numpy as np
from PIL import Image

from pipeline.metrics import Confusion, truth_ignore
from pipeline.overview import Overview
from pipeline.pages import share, shown_name, shown_uri, write_template
from pipeline.palette import class_colours, class_pattern, hexadecimal
from pipeline.resize import Size
from pipeline.segments import IGNORE, decode_label_map
from pipeline.throughput import RunFigures
from pipeline.thumbnails import LabelMap, Thumbnail, map_thumbnail, photo_thumbnail
from schemas.manifest import Manifest
from schemas.vocabulary import Vocabulary

MAX_REFUSALS: Final = 200
_NAMED_IN_ALT: Final = 6
_SHORT_LEGEND: Final = 8
_LONG_LEGEND: Final = 12  # up to this nothing is folded away


@dataclass(frozen=True)
class LegendEntry:
    """One class of one image; areas are shares of its pixels, None where it does not occur."""

    name: str
    class_index: int  # IGNORE: pixels without a label
    colour: str | None  # None: pixels without a label
    pattern: str
    is_unseen: bool
    area: float | None
    truth_area: float | None
    score: float | None


@dataclass(frozen=True)
class Card:
    """One labelled image of the page."""

    name: str
    uri: str
    size: Size
    photo: Thumbnail | None  # None: the file cannot be read any more, see note
    labels: Thumbnail
    truth: Thumbnail | None
    note: str | None
    legend: tuple[LegendEntry, ...]
    coverage: float | None
    mean_score: float | None
    mean_margin: float | None
    accuracy: float | None  # share of the truth's pixels with their true label
    picked: tuple[str, ...]  # why it is on the page: worst, uncertain, spread

    @property
    def quality(self) -> float:
        """The mean score over all pixels, those without a label counting 0."""
        return (self.mean_score or 0.0) * (self.coverage or 0.0)

    @property
    def classes(self) -> str:
        """The numbers of its labels, for the page's filter."""
        found = [str(one.class_index) for one in self.legend if one.colour and one.area]
        return " ".join(found)

    @property
    def pictures_bytes(self) -> int:
        """What its pictures take on the page."""
        pictures = (self.photo, self.labels, self.truth)
        return sum(len(picture.source) for picture in pictures if picture)

    @property
    def short_legend(self) -> tuple[LegendEntry, ...]:
        """The entries that are always shown."""
        return self.legend if len(self.legend) <= _LONG_LEGEND else self.legend[:_SHORT_LEGEND]

    @property
    def more_legend(self) -> tuple[LegendEntry, ...]:
        """The entries that are shown on demand."""
        return self.legend[len(self.short_legend) :]


@dataclass(frozen=True)
class Refusal:
    """One quarantined image."""

    name: str
    uri: str
    stage: str
    code: str
    message: str


@dataclass(frozen=True)
class ClassFigure:
    """IoU of one class that occurs in the truth."""

    name: str
    colour: str
    pattern: str
    is_unseen: bool
    iou: float


@dataclass(frozen=True)
class Figures:
    """What the comparison with the truth gave; fractions."""

    images: int
    headline: Mapping[str, float]
    classes: tuple[ClassFigure, ...]


@dataclass(frozen=True)
class ClassUse:
    """How often one class occurs; `scores` are the counts of its segments by score, as 0 to 1."""

    index: int
    name: str
    colour: str
    pattern: str
    is_unseen: bool
    images: int
    image_share: float  # of the labelled images
    area_share: float  # of the labelled pixels
    mean_score: float | None
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Page:
    """Everything above the cards."""

    dataset: str
    manifest: Manifest
    figures: Figures | None
    overview: Overview
    runs: tuple[RunFigures, ...]  # newest version first
    num_cards: int
    has_truth: bool

    @property
    def classes(self) -> tuple[ClassUse, ...]:
        """Every class, the one with most pixels first."""
        vocabulary, overview = self.manifest.vocabulary, self.overview
        colours = class_colours(len(vocabulary))
        uses = []
        for index, name in enumerate(vocabulary.names):
            area, counts = overview.areas[index], overview.scores_of_class(index)
            uses.append(
                ClassUse(
                    index=index,
                    name=name,
                    colour=hexadecimal(colours[index]),
                    pattern=class_pattern(index),
                    is_unseen=_is_unseen(vocabulary, index),
                    images=overview.images[index],
                    image_share=overview.images[index] / max(1, overview.labelled),
                    area_share=area / max(1, overview.labelled_pixels),
                    mean_score=overview.weighted_scores[index] / area if area else None,
                    scores=tuple(count / max(1, *counts) for count in counts),
                )
            )
        return tuple(sorted(uses, key=lambda use: (-use.area_share, use.index)))

    @property
    def max_refusals(self) -> int:
        """How many quarantined images are listed at most."""
        return MAX_REFUSALS

    @property
    def num_unseen(self) -> int | None:
        """Number of unseen classes, None when the vocabulary has no flags."""
        seen = self.manifest.vocabulary.seen
        return None if seen is None else seen.count(False)

    @property
    def provenance(self) -> tuple[tuple[str, str], ...]:
        """What decided the labels, as names and texts."""
        manifest = self.manifest
        software = " · ".join(f"{name} {number}" for name, number in manifest.software.items())
        return (
            ("run", manifest.run_id),
            ("fingerprint", manifest.fingerprint),
            *_described(manifest.models),
            ("software", software),
        )


def make_card(
    row: Mapping[str, Any],
    vocabulary: Vocabulary,
    photo: Image.Image | str,
    truth_HW: LabelMap | None,
    picked: tuple[str, ...] = (),
) -> Card:
    """Return the card of a labelled row; `photo` is the image, or why there is none.

    Raises ValueError when segments overlap, or when the truth does not fit the labels.
    """
    size = (row["height"], row["width"])
    predicted_HW = decode_label_map(row["segments"], size)
    name, uri = shown_name(row["uri"]), shown_uri(row["uri"])
    truth = accuracy = None
    if truth_HW is not None:
        accuracy = _accuracy(predicted_HW, truth_HW, len(vocabulary))
        is_ignored_HW = truth_HW == truth_ignore(len(vocabulary))
        truth_HW = np.where(is_ignored_HW, IGNORE, truth_HW).astype(np.int32)
    legend = _legend(row["segments"], predicted_HW.size, vocabulary, truth_HW)
    if truth_HW is not None:
        truth = map_thumbnail(truth_HW, f"Truth of {name}: {_summary(legend, 'truth_area')}")
    return Card(
        name=name,
        uri=uri,
        size=size,
        photo=photo_thumbnail(photo, f"Image {name}") if isinstance(photo, Image.Image) else None,
        labels=map_thumbnail(predicted_HW, f"Labels of {name}: {_summary(legend, 'area')}"),
        truth=truth,
        note=photo if isinstance(photo, str) else None,
        legend=legend,
        coverage=row["coverage"],
        mean_score=row["mean_score"],
        mean_margin=_mean_margin(row["segments"]),
        accuracy=accuracy,
        picked=picked,
    )


def _mean_margin(segments: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean margin of the labelled pixels; None: there are none, or a person's."""
    if not segments or any(segment["margin"] is None for segment in segments):
        return None
    area = sum(segment["area"] for segment in segments)
    return float(sum(segment["margin"] * segment["area"] for segment in segments) / area)


def make_refusal(row: Mapping[str, Any]) -> Refusal:
    """Return what the page says of a quarantined row."""
    return Refusal(shown_name(row["uri"]), shown_uri(row["uri"]), **row["error"])


def make_class_figures(
    vocabulary: Vocabulary, class_iou: Mapping[str, float]
) -> tuple[ClassFigure, ...]:
    """Return the classes that occur in the truth, best IoU first."""
    colours = class_colours(len(vocabulary))
    figures = [
        ClassFigure(
            name,
            hexadecimal(colours[index]),
            class_pattern(index),
            _is_unseen(vocabulary, index),
            iou,
        )
        for index, name in enumerate(vocabulary.names)
        if (iou := class_iou.get(name)) is not None
    ]
    return tuple(sorted(figures, key=lambda figure: -figure.iou))


def write_page(
    file: TextIO, page: Page, cards: Iterable[Card], refusals: Iterable[Refusal]
) -> None:
    """Write the page to `file` card by card; both iterables may be lazy."""
    write_template(
        file,
        "report.html.j2",
        "gallery.js",
        page=page,
        manifest=page.manifest,
        figures=page.figures,
        cards=cards,
        refusals=refusals,
    )


def _legend(
    segments: Sequence[Mapping[str, Any]],
    pixels: int,
    vocabulary: Vocabulary,
    truth_HW: LabelMap | None,
) -> tuple[LegendEntry, ...]:
    """Return the classes of labels and truth, largest first, then the pixels without a label."""
    found = {segment["class_index"]: segment for segment in segments}
    truth_areas = {} if truth_HW is None else _areas(truth_HW)
    indices = {*found, *truth_areas} - {IGNORE}
    colours = class_colours(1 + max(indices, default=0))
    entries = []
    for index in indices:
        segment = found.get(index)
        entries.append(
            LegendEntry(
                name=segment["label"] if segment else vocabulary.names[index],
                class_index=index,
                pattern=class_pattern(index),
                colour=hexadecimal(colours[index]),
                is_unseen=_is_unseen(vocabulary, index),
                area=segment["area"] / pixels if segment else None,
                truth_area=truth_areas.get(index),
                score=segment["score"] if segment else None,
            )
        )
    entries.sort(key=lambda entry: (-(entry.area or 0), -(entry.truth_area or 0), entry.name))
    unlabelled = 1 - sum(segment["area"] for segment in segments) / pixels
    ignored = truth_areas.get(IGNORE)
    if unlabelled > 0 or ignored:
        shares = (unlabelled or None, ignored)
        entries.append(LegendEntry("no label", IGNORE, None, "plain", False, *shares, None))
    return tuple(entries)


def _accuracy(predicted_HW: LabelMap, truth_HW: LabelMap, num_classes: int) -> float | None:
    accuracy = Confusion.of(predicted_HW, truth_HW, num_classes).pixel_accuracy()
    return None if isnan(accuracy) else accuracy


def _areas(label_map_HW: LabelMap) -> dict[int, float]:
    indices, counts = np.unique(label_map_HW, return_counts=True)
    return {
        int(index): int(count) / label_map_HW.size
        for index, count in zip(indices, counts, strict=True)
    }


def _is_unseen(vocabulary: Vocabulary, index: int) -> bool:
    return vocabulary.seen is not None and index < len(vocabulary) and not vocabulary.seen[index]


def _summary(legend: Sequence[LegendEntry], area: str) -> str:
    """Return the largest classes in words, for those who do not see the colours."""
    shown = [entry for entry in legend if getattr(entry, area)]
    shown.sort(key=lambda entry: -getattr(entry, area))
    words = [f"{entry.name} {share(getattr(entry, area))}" for entry in shown[:_NAMED_IN_ALT]]
    if len(shown) > _NAMED_IN_ALT:
        words.append(f"{len(shown) - _NAMED_IN_ALT} more")
    return ", ".join(words) or "nothing"


def _described(models: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what decided the labels, without the vocabulary, of which the page has the classes."""
    described = []
    for name, value in models.items():
        if value is None or name == "vocabulary":
            continue
        text = " · ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        described.append((name.replace("_", " "), text))
    return described
