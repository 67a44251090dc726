"""`segmill evaluate`: labels against truths, as sums over images that may be made in parallel."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.dataset import read_manifest, read_rows, read_uris
from pipeline.evaluation.labels import LabelItem, LabelMeasure, StoredLabels
from pipeline.evaluation.page import write_evaluation_page
from pipeline.evaluation.parallel import add_up
from pipeline.evaluation.protocol import describe_protocol
from pipeline.evaluation.result import EvaluateResult, ProposalFigures, mean_ious
from pipeline.evaluation.truth_segments import find_truths
from pipeline.metrics import truth_ignore
from pipeline.storage import hide_secrets
from pipeline.truth import ImageFiles
from pipeline.whole_file import refuse_unwritable, whole_file
from schemas.annotation import LABELLED
from schemas.errors import SettingsError
from schemas.evaluate_config import EvaluateConfig
from schemas.manifest import Manifest
from schemas.vocabulary import Vocabulary, read_vocabulary

_IMAGES_PER_CHUNK: Final = 32
_UNITS_PER_CHUNK: Final = 1  # a row group of masks
_COLUMNS: Final = ("uri", "status", "height", "width", "segments")


@dataclass
class _Pairs:
    """The images that have a truth, read as they are asked for; counts those without."""

    labels: Callable[[], Iterator[tuple[str, StoredLabels | Path]]]
    truths: Mapping[str, Path]  # by URI
    without_truth: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[LabelItem]:
        for uri, labels in self.labels():
            truth = self.truths.get(uri)
            if truth is None:
                self.without_truth += 1
            else:
                yield LabelItem(labels, truth)


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Compare every labelled image with its truth: the file of the same stem.

    Raises SettingsError when no image has a truth, two claim one equally, a file cannot be read,
    sizes differ, or a truth holds an index outside the vocabulary.
    """
    started = time.monotonic()
    for path in (config.output, config.page):
        if path is not None:
            refuse_unwritable(path)
    manifest = None
    if config.vocabulary is None:
        manifest = read_manifest(config.dataset, config.version)
        vocabulary = manifest.vocabulary
    else:
        vocabulary = read_vocabulary(config.vocabulary)
    truths = find_truths(config.truth, config.truth_format)
    pairs = _pairs(config, manifest, truths)
    proposals = (
        _proposals(config, manifest, pairs.truths) if config.proposals and manifest else None
    )
    measure = LabelMeasure(len(vocabulary), config.truth_format, _ignored(config, vocabulary))
    total = add_up(measure, pairs, _IMAGES_PER_CHUNK, config.workers)
    if not total.images:
        raise SettingsError(
            f"no labelled image of {hide_secrets(config.dataset)} has a truth in {config.truth}"
        )
    result = EvaluateResult(
        name=hide_secrets(config.dataset),
        version=manifest.version if manifest else None,
        truth=config.truth,
        vocabulary=vocabulary,
        images=total.images,
        without_truth=pairs.without_truth,
        truth_files=len(truths),
        quarantined=manifest.counts.quarantined if manifest else 0,
        seconds=time.monotonic() - started,
        protocol=config.protocol,
        described_protocol=describe_protocol(
            config.protocol, config.truth_format, _ignored(config, vocabulary), vocabulary
        ),
        by_protocol=mean_ious(total.confusion, total.boundary, vocabulary.seen),
        total=total,
        proposals=proposals,
    )
    _write(config, result)
    return result


def _ignored(config: EvaluateConfig, vocabulary: Vocabulary) -> int:
    return truth_ignore(len(vocabulary)) if config.ignore is None else config.ignore


def _pairs(config: EvaluateConfig, manifest: Manifest | None, truths: ImageFiles) -> _Pairs:
    if manifest is not None:
        stored = manifest
        of_uris = truths.paired(read_uris(config.dataset, stored))
        return _Pairs(lambda: _stored_labels(config.dataset, stored), of_uris)
    paths = ImageFiles.below(config.dataset, {".png"})
    if not paths:
        raise SettingsError(f"there are no PNG label maps in {config.dataset}")
    of_paths = truths.paired(map(str, paths))
    return _Pairs(lambda: ((str(path), path) for path in paths), of_paths)


def _stored_labels(dataset: str, manifest: Manifest) -> Iterator[tuple[str, StoredLabels]]:
    for table in read_rows(dataset, manifest, _COLUMNS):
        for row in table.to_pylist():
            if row["status"] == LABELLED:
                yield row["uri"], StoredLabels((row["height"], row["width"]), row["segments"])


def _proposals(
    config: EvaluateConfig, manifest: Manifest, truths: Mapping[str, Path]
) -> ProposalFigures:
    # Torch takes seconds to import, and most evaluations need none.
    from pipeline.evaluation.kept import kept_units, require_kept
    from pipeline.evaluation.proposals import ProposalMeasure

    require_kept(config.dataset, manifest)
    measure = ProposalMeasure(
        config.dataset,
        len(manifest.vocabulary),
        config.truth_format,
        _ignored(config, manifest.vocabulary),
        manifest.models["divisor"],
        manifest.config["mask_precision"],
    )
    units = kept_units(config.dataset, manifest, truths.get)
    total = add_up(measure, units, _UNITS_PER_CHUNK, config.workers)
    if not total.recall.images:
        raise SettingsError(
            f"no image of {hide_secrets(config.dataset)} with kept proposals has a truth in "
            f"{config.truth}"
        )
    if config.truth_format != "classes":
        return ProposalFigures(total.recall, total.outlines, None, None)
    means = mean_ious(total.oracle, total.oracle_boundary, manifest.vocabulary.seen)
    return ProposalFigures(total.recall, total.outlines, total.oracle, means)


def _write(config: EvaluateConfig, result: EvaluateResult) -> None:
    if config.output is not None:
        with whole_file(config.output) as file:
            json.dump(result.document(), file, indent=1, allow_nan=False)
            file.write("\n")
    if config.page is not None:
        with whole_file(config.page) as file:
            write_evaluation_page(file, result)
