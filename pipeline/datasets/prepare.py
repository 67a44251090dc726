"""All pairs of a data set, in parallel processes; then what describes them, and nothing before.

A run that was interrupted goes on where it stopped; one that is repeated finds all done.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Literal

from pipeline.datasets.conversion import Conversion, Converted, Counts, Skip
from pipeline.datasets.layout import (
    BASE_VOCABULARY_FILE,
    DATASET_FILE,
    SKIPPED_FILE,
    VOCABULARY_FILE,
    SegmentationDataset,
    SplitFacts,
    dataset_text,
    read_dataset,
    read_split,
    vocabulary_text,
)
from pipeline.datasets.plan import Pair, Plan
from pipeline.files import write_bytes
from pipeline.metrics import truth_ignore
from schemas.errors import DatasetError, SegmillError
from schemas.vocabulary import Vocabulary

BEGUN_FILE: Final = "preparation.json"

_CHUNK: Final = 64  # pairs per task


@dataclass(frozen=True)
class Preparation:
    """How a plan is carried out."""

    name: str
    output: Path
    image_files: Literal["link", "copy"] = "link"
    max_bad_fraction: float = 0.0
    workers: int | None = None


Report = Callable[[int], None]  # told how many pairs are done


def prepare_dataset(
    plan: Plan, how: Preparation, report: Report = lambda _done: None
) -> SegmentationDataset:
    """Write a data set and return its description.

    Raises DatasetError when the output holds something else, and as soon as too many files are
    bad; what was written by then is kept.
    """
    fingerprint = plan_fingerprint(plan, how.name)
    _begin(how.output, fingerprint)
    if (how.output / DATASET_FILE).exists():
        return _finished(how.output)
    base_of = plan.base_splits()
    is_seen = plan.vocabulary.seen or (True,) * len(plan.vocabulary)
    conversion = Conversion(
        how.output, plan.decode, plan.index_of, plan.ignored, is_seen, base_of, how.image_files
    )
    converted = _convert_all(conversion, plan.splits, how, report)
    write = partial(_write_text, how.output)
    write(VOCABULARY_FILE, vocabulary_text(plan.vocabulary))
    if base_of:
        seen = Vocabulary(classes=tuple(entry for entry in plan.vocabulary.classes if entry.seen))
        write(BASE_VOCABULARY_FILE, vocabulary_text(seen))
    skips = sorted(
        (skip for part in converted for skip in part.skips),
        key=lambda skip: (skip.split, skip.name),
    )
    write(SKIPPED_FILE, "".join(json.dumps(asdict(skip)) + "\n" for skip in skips))
    dataset = SegmentationDataset(
        name=how.name,
        num_classes=len(plan.vocabulary),
        ignore=truth_ignore(len(plan.vocabulary)),
        fingerprint=fingerprint,
        splits=dict(_splits(plan, base_of, converted, skips)),
    )
    write(DATASET_FILE, dataset_text(dataset))
    return dataset


def plan_fingerprint(plan: Plan, name: str) -> str:
    """Return a hash of all that decides the maps, but for the content of official downloads."""
    facts = {
        "name": name,
        "vocabulary": plan.vocabulary.model_dump(mode="json"),
        "index_of": sorted(plan.index_of.items()),
        "ignored": sorted(plan.ignored),
        "origin": plan.origin,
        "splits": {split: [pair.name for pair in pairs] for split, pairs in plan.splits.items()},
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _begin(output: Path, fingerprint: str) -> None:
    """Mark the output as of this plan; refuses one that holds anything else."""
    mark = output / BEGUN_FILE
    try:
        begun = json.loads(mark.read_bytes())["fingerprint"]
    except FileNotFoundError:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise DatasetError(
                f"{output} holds something else already; name another --output"
            ) from None
        _write_text(output, BEGUN_FILE, json.dumps({"fingerprint": fingerprint}))
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"cannot read {mark}: {error}; delete {output}") from None
    if begun != fingerprint:
        raise DatasetError(
            f"{output} was prepared, or begun, with other settings or another download; name "
            "another --output, or delete it"
        )


def _finished(output: Path) -> SegmentationDataset:
    dataset = read_dataset(output)
    for split in dataset.splits:
        try:
            for _ in read_split(output, split):
                pass
        except DatasetError as error:
            raise DatasetError(
                f"{error}; delete {output / DATASET_FILE} to prepare what is missing"
            ) from None
    return dataset


def _convert_all(
    conversion: Conversion, splits: Mapping[str, Sequence[Pair]], how: Preparation, report: Report
) -> list[Converted]:
    chunks = [
        (split, pairs[start : start + _CHUNK])
        for split, pairs in splits.items()
        for start in range(0, len(pairs), _CHUNK)
    ]
    total = sum(map(len, splits.values()))
    converted: list[Converted] = []
    done = 0
    for part in _run(conversion, chunks, how.workers or os.cpu_count() or 1):
        converted.append(part)
        _refuse_bad(converted, total, how.max_bad_fraction)
        done += part.counts.images + sum(skip.split == part.split for skip in part.skips)
        report(done)
    return converted


def _run(
    conversion: Conversion, chunks: Sequence[tuple[str, Sequence[Pair]]], workers: int
) -> Iterator[Converted]:
    workers = min(workers, len(chunks))
    if workers <= 1:
        yield from (conversion.convert(split, pairs) for split, pairs in chunks)
        return
    # Spawned: a forked child of a process that runs threads can hang.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = [pool.submit(conversion.convert, split, pairs) for split, pairs in chunks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise SegmillError(
                "a process was killed, perhaps for memory; run the same again with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _refuse_bad(converted: Sequence[Converted], total: int, max_bad_fraction: float) -> None:
    bad = [skip for part in converted for skip in part.skips if skip.is_bad]
    if len(bad) > max_bad_fraction * total:
        raise DatasetError(
            f"{bad[0].reason} ({len(bad)} of {total} pairs are bad so far, --max-bad-fraction is "
            f"{max_bad_fraction:g})"
        )


def _splits(
    plan: Plan, base_of: Mapping[str, str], converted: Sequence[Converted], skips: Sequence[Skip]
) -> Iterator[tuple[str, SplitFacts]]:
    num_classes = len(plan.vocabulary)
    for split in plan.splits:
        parts = [part for part in converted if part.split == split]
        counts = sum((part.counts for part in parts), Counts.zero(num_classes))
        yield split, _facts(split, split, VOCABULARY_FILE, counts, skips)
        if split in base_of:
            num_seen = sum(plan.vocabulary.seen or ())
            base = sum((part.base_counts for part in parts), Counts.zero(num_seen))
            yield base_of[split], _facts(base_of[split], split, BASE_VOCABULARY_FILE, base, skips)


def _facts(
    name: str, images: str, vocabulary: str, counts: Counts, skips: Sequence[Skip]
) -> SplitFacts:
    return SplitFacts(
        images=f"images/{images}",
        masks=f"masks/{name}",
        vocabulary=vocabulary,
        count=counts.images,
        skipped=sum(skip.split == name for skip in skips),
        class_pixels=tuple(counts.class_pixels_K.tolist()),
        class_images=tuple(counts.class_images_K.tolist()),
        ignored_pixels=counts.ignored_pixels,
    )


def _write_text(output: Path, name: str, text: str) -> None:
    write_bytes(str(output), name, text.encode())
