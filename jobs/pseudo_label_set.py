"""The pseudo-label set of a self-training: written as `segmill datasets prepare` would.

Rows arrive as tasks finish and are noted in labelled.jsonl; a run that was cut short goes on after
the units that are noted. The description, dataset.json, is the last to be written.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from jobs.annotation_flows import encode_vocabulary, label_stage
from jobs.progress import Progress
from jobs.self_training_plan import SelfTrainingPlan
from pipeline import runtime
from pipeline.dataset import read_rows
from pipeline.datasets.conversion import Counts, Skip
from pipeline.datasets.layout import (
    DATASET_FILE,
    SKIPPED_FILE,
    VOCABULARY_FILE,
    SegmentationDataset,
    SplitFacts,
    dataset_text,
)
from pipeline.evaluation.kept import kept_units
from pipeline.evaluation.proposals import ProposalUnit
from pipeline.files import write_bytes
from pipeline.lock import new_run_id
from pipeline.storage import hide_secrets
from pipeline.training.class_cap import ClassCap
from pipeline.training.pseudo_set import (
    SPLIT,
    PseudoClass,
    PseudoImage,
    PseudoLabeller,
    ignore_classes,
    in_chunks,
)
from pipeline.truth import ImageFiles
from schemas.annotation import LABELLED
from schemas.errors import SettingsError

RECORDS: Final = "labelled.jsonl"
SUMMARY: Final = "pseudo_labels.json"

_MAPS_PER_TASK: Final = 256
_NAME: Final = "pseudo-labels"


@dataclass(frozen=True)
class PseudoSummary:
    """What the set holds."""

    images: int
    skipped: Mapping[str, int]  # by reason
    pseudo_images: Mapping[str, int]  # images with pseudo labels of each unseen class
    capped: Mapping[str, int]  # images in which the cap took a class away, by class
    ignored_share: float  # of all pixels


def make_pseudo_set(plan: SelfTrainingPlan, progress: Progress) -> PseudoSummary:
    """Write the set, or what is missing of it, on the connected cluster.

    Raises SettingsError when no image of the truth has labels.
    """
    return _Writing(plan, progress).summary()


def made_pseudo_set(plan: SelfTrainingPlan) -> PseudoSummary | None:
    """Return what the finished set holds, or None where it is not finished."""
    if not (plan.pseudo_directory / DATASET_FILE).is_file():
        return None
    return PseudoSummary(**json.loads((plan.pseudo_directory / SUMMARY).read_bytes()))


class _Writing:
    def __init__(self, plan: SelfTrainingPlan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self._output = plan.pseudo_directory
        pairs = plan.data.pairs(plan.config.extensions)
        self._pairs = {pair.mask: pair for pair in pairs}
        self._truths = ImageFiles(plan.data.masks / pair.mask for pair in pairs)

    def summary(self) -> PseudoSummary:
        """Do all of it."""
        self._label_units()
        skips = self._skips()
        if len(skips) == len(self._pairs):
            reasons = Counter(_reason(skip) for skip in skips)
            told = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
            raise SettingsError(
                f"none of the {len(self._pairs)} images of {self._plan.data.images} has labels in "
                f"{hide_secrets(self._plan.config.labels)} ({told}); annotate these images"
            )
        cap = self._cap()
        self._progress.say("balancing the classes")
        drops = ((image.name, dropped) for image, dropped in self._capped(cap) if dropped)
        work = partial(_ignore, self._output, self._plan.ignore)
        for _ in runtime.stream_tasks(work, in_chunks(drops, _MAPS_PER_TASK)):
            pass
        return self._described(skips, cap)

    # --- labelling ------------------------------------------------------------------------------

    def _label_units(self) -> None:
        """Label what no record tells of, and record it."""
        done = {tuple(record["unit"]) for record in self._records()}
        units = kept_units(self._plan.config.labels, self._plan.manifest, self._truths.of)
        left = [unit for unit in units if (unit.path, unit.row_group) not in done]
        if not left:
            return
        images = sum(len(unit.truths) for unit in left)
        self._progress.say(f"pseudo labels for {images} images")
        self._progress.start(["label"], images)
        labelled = 0
        with (self._output / RECORDS).open("a", encoding="utf-8") as file:
            work = partial(_label_unit, self._labeller())
            for unit, found in runtime.stream_tasks(work, left):
                _record(file, unit, found)
                labelled += len(found)
                self._progress.update({"label": labelled})

    def _labeller(self) -> PseudoLabeller:
        plan = self._plan
        how = plan.annotation
        prompts = (how.query_prompts, how.region_prompts)
        texts = runtime.run_task(encode_vocabulary, how.clip, how.vocabulary, prompts)
        return PseudoLabeller(
            plan.config.labels,
            self._output,
            label_stage(how, texts, new_run_id()),
            how.fingerprints.embedding,
            plan.data,
            self._pairs,
            plan.pseudo_settings,
            plan.config.reject_share,
        )

    def _records(self) -> Iterator[dict[str, Any]]:
        """Yield what was recorded; a line that a killed run was writing ends it, and is cut off."""
        file = self._output / RECORDS
        if not file.is_file():
            return
        whole = 0
        with file.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                yield json.loads(line)
        if whole < file.stat().st_size:
            with file.open("r+b") as lines:
                lines.truncate(whole)

    def _images(self) -> Iterator[PseudoImage]:
        for record in self._records():
            yield from map(PseudoImage.of, record["images"])

    def _labelled(self) -> Iterator[PseudoImage]:
        """Yield the images that have a map, each once: two rows may have claimed one."""
        known: set[str] = set()
        for image in self._images():
            if not image.reason and image.name not in known:
                known.add(image.name)
                yield image

    # --- the account ----------------------------------------------------------------------------

    def _skips(self) -> list[Skip]:
        """Return why images of the truth are not in the set, in order."""
        reasons = {image.name: (image.reason, image.detail) for image in self._images()}
        # An image that two rows claim is in the set when one of them was it.
        reasons |= {image.name: ("", "") for image in self._images() if not image.reason}
        columns = ("uri", "status", "error")
        for table in read_rows(self._plan.config.labels, self._plan.manifest, columns):
            for row in table.to_pylist():
                truth = self._truths.of(row["uri"])
                if truth is not None:
                    name = truth.relative_to(self._plan.data.masks).as_posix()
                    reasons.setdefault(name, _why_not_kept(row))
        for name in self._pairs:
            reasons.setdefault(name, ("not_in_dataset", ""))
        return [
            Skip(SPLIT, self._pairs[name].image, f"{reason}: {detail}" if detail else reason, True)
            for name, (reason, detail) in sorted(reasons.items())
            if reason
        ]

    def _cap(self) -> ClassCap:
        cap = ClassCap(self._plan.config.max_images_per_class)
        for image in self._labelled():
            for found in self._unseen(image):
                cap.add(found.class_index, found.score, image.name)
        return cap

    def _capped(self, cap: ClassCap) -> Iterator[tuple[PseudoImage, list[int]]]:
        """Yield every image with the classes that the cap takes away in it."""
        for image in self._labelled():
            yield (
                image,
                [
                    found.class_index
                    for found in self._unseen(image)
                    if not cap.keeps(found.class_index, found.score, image.name)
                ],
            )

    def _unseen(self, image: PseudoImage) -> list[PseudoClass]:
        seen = self._plan.data.seen
        return [found for found in image.classes if not seen[found.class_index]]

    def _described(self, skips: Sequence[Skip], cap: ClassCap) -> PseudoSummary:
        """Write what tells of the set, its description last, and return the summary."""
        counts = Counts.zero(len(self._plan.vocabulary))
        taken: Counter[int] = Counter()
        for image, dropped in self._capped(cap):
            taken.update(dropped)
            counts += _counts(image, dropped, len(self._plan.vocabulary))
        plan = self._plan
        names, seen = plan.vocabulary.names, plan.data.seen
        lines = "".join(json.dumps(asdict(skip)) + "\n" for skip in skips)
        write_bytes(str(self._output), SKIPPED_FILE, lines.encode())
        facts = json.dumps(plan.pseudo_facts(), sort_keys=True)
        dataset = SegmentationDataset(
            name=_NAME,
            num_classes=len(names),
            ignore=plan.ignore,
            fingerprint=hashlib.sha256(facts.encode()).hexdigest(),
            splits={
                SPLIT: SplitFacts(
                    images=f"images/{SPLIT}",
                    masks=f"masks/{SPLIT}",
                    vocabulary=VOCABULARY_FILE,
                    count=counts.images,
                    skipped=len(skips),
                    class_pixels=tuple(counts.class_pixels_K.tolist()),
                    class_images=tuple(counts.class_images_K.tolist()),
                    ignored_pixels=counts.ignored_pixels,
                )
            },
        )
        pixels = int(counts.class_pixels_K.sum()) + counts.ignored_pixels
        images = zip(names, counts.class_images_K.tolist(), seen, strict=True)
        summary = PseudoSummary(
            images=counts.images,
            skipped=dict(Counter(map(_reason, skips))),
            pseudo_images={name: number for name, number, is_seen in images if not is_seen},
            capped={names[index]: number for index, number in sorted(taken.items())},
            ignored_share=counts.ignored_pixels / pixels,
        )
        write_bytes(str(self._output), SUMMARY, json.dumps(asdict(summary), indent=1).encode())
        write_bytes(str(self._output), DATASET_FILE, dataset_text(dataset).encode())
        return summary


def _label_unit(
    labeller: PseudoLabeller, unit: ProposalUnit
) -> tuple[ProposalUnit, list[PseudoImage]]:
    return unit, labeller(unit)


def _ignore(output: Path, ignore: int, images: Sequence[tuple[str, Sequence[int]]]) -> None:
    ignore_classes(output, images, ignore)


def _record(file: TextIO, unit: ProposalUnit, found: Sequence[PseudoImage]) -> None:
    record = {"unit": [unit.path, unit.row_group], "images": [asdict(image) for image in found]}
    file.write(json.dumps(record) + "\n")
    file.flush()


def _why_not_kept(row: Mapping[str, Any]) -> tuple[str, str]:
    if row["status"] == LABELLED:
        return "no_kept_embeddings", row["uri"]
    return "quarantined", f"{row['error']['stage']}/{row['error']['code']}"


def _reason(skip: Skip) -> str:
    return skip.reason.partition(":")[0]


def _counts(image: PseudoImage, dropped: Sequence[int], num_classes: int) -> Counts:
    pixels_K = np.zeros(num_classes, np.int64)
    for found in image.classes:
        pixels_K[found.class_index] = found.pixels
    lost = int(pixels_K[list(dropped)].sum())
    pixels_K[list(dropped)] = 0
    return Counts(1, pixels_K, (pixels_K > 0).astype(np.int64), image.rejected + lost)
