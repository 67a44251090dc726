"""Which segments count and under which class: floors, areas, joined and dropped classes."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pycocotools import mask as coco_mask

from pipeline.exports.records import ExportSegment, segment_of
from pipeline.resize import Size
from schemas.errors import SettingsError
from schemas.export_config import SelectionSettings
from schemas.vocabulary import Vocabulary

DROP: Final = "drop"
# Where the file that `segmill calibrate` writes has its floors.
FLOORS: Final = {"score": "class_min_scores", "margin": "class_min_margins"}

# Why a segment became ignored pixels.
CLASS_DROPPED: Final = "class_dropped"
BELOW_SCORE: Final = "below_score"
BELOW_MARGIN: Final = "below_margin"
TOO_SMALL: Final = "too_small"
NOT_TRUSTED: Final = "not_trusted"


@dataclass(frozen=True)
class TrustLimits:
    """What a segment's measures of trust must keep; one that it does not have keeps any."""

    max_disagreement: float = 1.0
    min_stability: float = 0.0

    def keep(self, segment: Mapping[str, Any]) -> bool:
        """Return whether a segment of a dataset row keeps all limits."""
        disagreement, stability = segment.get("disagreement"), segment.get("stability")
        return not (
            (disagreement is not None and disagreement > self.max_disagreement)
            or (stability is not None and stability < self.min_stability)
        )


@dataclass(frozen=True)
class Selection:
    """What becomes of each class of a dataset, and which of its segments count."""

    names: tuple[str, ...]  # classes of the export
    targets: tuple[int | None, ...]  # position there of each class of the dataset; None: ignored
    # Of each class of the dataset; None: none but what a person drew.
    floors: tuple[float | None, ...]
    margins: tuple[float | None, ...]
    min_area: int
    trust: TrustLimits = TrustLimits()

    @classmethod
    def read(cls, vocabulary: Vocabulary, settings: SelectionSettings) -> "Selection":
        """Read the files that the settings name.

        Raises SettingsError for a file that is no mapping, a class that the dataset does not have,
        a score outside [0, 1], and indices that leave a gap or have two names.
        """
        names, targets = _renamed(vocabulary.names, settings.classes)
        of_classes = vocabulary.names
        floors = _floors(settings.class_min_scores, of_classes, "score", settings.min_score)
        margins = _floors(settings.class_min_margins, of_classes, "margin", settings.min_margin)
        trust = TrustLimits(settings.max_disagreement, settings.min_stability)
        return cls(names, targets, floors, margins, settings.min_area, trust)

    def apply(
        self, segments: Sequence[Mapping[str, Any]], size: Size
    ) -> tuple[tuple[ExportSegment, ...], Counter[str]]:
        """Return the segments that count, in order of class, and how many did not, by reason."""
        dropped: Counter[str] = Counter()
        by_class: dict[int, list[ExportSegment]] = {}
        for segment in segments:
            target = self.targets[segment["class_index"]]
            if target is None:
                dropped[CLASS_DROPPED] += 1
            elif _is_below(segment, "score", self.floors[segment["class_index"]]):
                dropped[BELOW_SCORE] += 1
            elif _is_below(segment, "margin", self.margins[segment["class_index"]]):
                dropped[BELOW_MARGIN] += 1
            elif not self.trust.keep(segment):
                dropped[NOT_TRUSTED] += 1
            else:
                by_class.setdefault(target, []).append(segment_of(segment, target))
        joined = [_joined(by_class[target], size) for target in sorted(by_class)]
        kept = tuple(segment for segment in joined if segment.area >= self.min_area)
        if len(kept) < len(joined):
            dropped[TOO_SMALL] += len(joined) - len(kept)
        return kept, dropped


def _is_below(segment: Mapping[str, Any], measure: str, floor: float | None) -> bool:
    """Return whether a segment is under a floor; what a person drew has no margin, and never is."""
    if floor is None:
        return segment.get("margin") is not None
    value = segment.get(measure)
    return value is not None and bool(value < floor)


def _joined(segments: list[ExportSegment], size: Size) -> ExportSegment:
    """Return segments that do not overlap as one; its score is the mean over its pixels."""
    if len(segments) == 1:
        return segments[0]
    area = sum(segment.area for segment in segments)
    left, top, right, bottom = zip(*(segment.box for segment in segments), strict=True)
    runs = [{"size": list(size), "counts": segment.counts} for segment in segments]
    return ExportSegment(
        class_index=segments[0].class_index,
        score=sum(segment.score * segment.area for segment in segments) / area,
        area=area,
        box=(min(left), min(top), max(right), max(bottom)),
        counts=coco_mask.merge(runs)["counts"],
    )


def _renamed(
    names: Sequence[str], path: Path | None
) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """Return the classes of the export, and the position of each class of the dataset in them."""
    asked = {
        name: None if target == DROP else target for name, target in _mapping(path, names).items()
    }
    # A class of the dataset may itself be called so.
    wanted = {name: name for name in names} | asked
    at_index: dict[int, str] = {}
    for name, target in wanted.items():
        if isinstance(target, bool) or not isinstance(target, str | int | None) or target == "":
            raise SettingsError(
                f"{path}: {name!r} becomes {target!r}; it may become a name, an index, or {DROP}"
            )
        if isinstance(target, int):
            if target < 0:
                raise SettingsError(f"{path}: {name!r} becomes {target}; indices begin at 0")
            at_index.setdefault(target, name)  # the first class that goes there gives its name
    free = [target for target in dict.fromkeys(wanted.values()) if isinstance(target, str)]
    for name in free:
        if name in at_index.values():
            raise SettingsError(
                f"{path}: {name!r} would be two classes; give it an index or a name, not both"
            )
    number = len(at_index) + len(free)
    if not number:
        raise SettingsError(f"{path}: every class is dropped")
    places = iter(index for index in range(number) if index not in at_index)
    for name in free:
        at_index[next(places, number)] = name
    if sorted(at_index) != list(range(number)):
        raise SettingsError(
            f"{path}: index {max(at_index)} leaves a gap; {number} classes have the indices 0 to "
            f"{number - 1}"
        )
    index_of = {name: index for index, name in at_index.items()}
    targets = tuple(
        target if isinstance(target, int) else None if target is None else index_of[target]
        for target in (wanted[name] for name in names)
    )
    return tuple(at_index[index] for index in range(number)), targets


def _mapping(path: Path | None, names: Sequence[str]) -> dict[str, Any]:
    """Return a YAML mapping of class names; of no file an empty one."""
    return {} if path is None else _of_classes(path, _yaml(path), names)


def _floors(
    path: Path | None, names: Sequence[str], measure: str, otherwise: float
) -> tuple[float | None, ...]:
    """Return a floor of every class, of a mapping or of what `segmill calibrate` wrote."""
    floors: list[float | None] = [otherwise] * len(names)
    content = {} if path is None else _yaml(path)
    if isinstance(content, dict) and "provenance" in content:
        if FLOORS[measure] not in content:
            raise SettingsError(f"{path} holds no {FLOORS[measure]}; calibrate --by {measure}")
        content = content[FLOORS[measure]]
    for name, floor in (_of_classes(path, content, names) if path else {}).items():
        if floor == DROP:
            floors[names.index(name)] = None
            continue
        if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 1:
            raise SettingsError(
                f"{path}: the floor of {name!r} is {floor!r}, it must be a {measure} from 0 to 1, "
                f"or {DROP}"
            )
        floors[names.index(name)] = float(floor)
    return tuple(floors)


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"cannot read {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from None


def _of_classes(path: Path, content: Any, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold a mapping of class names")
    for name in content:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "the dataset has no such class"
            raise SettingsError(f"{path} names the class {name!r}; {hint}")
    return content
