"""What the plans of all trainings share: data, their examination, settings of an earlier run."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from jobs.progress import Progress
from pipeline import runtime
from pipeline.datasets.layout import (
    DATASET_FILE,
    VOCABULARY_FILE,
    SplitFacts,
    read_dataset,
    split_facts,
)
from pipeline.files import read_bytes, write_bytes
from pipeline.machines import gpus_of_workers
from pipeline.metrics import truth_ignore
from pipeline.training.labelled_images import Finding, LabelledImages, Pair
from pipeline.training_runtime import Workers
from schemas.config import Config
from schemas.errors import OutputError, SettingsError
from schemas.training_config import TrainingDataSettings, TrainingExecution
from schemas.vocabulary import Vocabulary, read_vocabulary

DATA_FILE: Final = "data.json"  # what was learned from, and what was left out
SETTINGS_FILE: Final = "config.json"

_PAIRS_PER_TASK: Final = 64
_NAMED: Final = 5

C = TypeVar("C", bound=Config)


def absolute(config: C) -> C:
    """Return settings that mean the same in workers, whose working directory is another."""
    paths = {name: value.absolute() for name, value in config if isinstance(value, Path)}
    return config.model_copy(update=paths)


def read_classes(config: TrainingDataSettings) -> Vocabulary:
    """Return the class list of the settings, by default that of the data set."""
    if config.vocabulary is not None:
        return read_vocabulary(config.vocabulary)
    if config.dataset is None:
        raise SettingsError("give dataset, or vocabulary")
    split = _prepared_split(config)
    return read_vocabulary(config.dataset / (split.vocabulary if split else VOCABULARY_FILE))


def labelled_images(config: TrainingDataSettings, vocabulary: Vocabulary) -> LabelledImages:
    """Return the two directories of the settings; raises SettingsError for labels without sense."""
    split = _prepared_split(config)
    if split is not None and len(split.class_pixels) != len(vocabulary):
        raise SettingsError(
            f"{config.vocabulary or 'the vocabulary'} has {len(vocabulary)} classes; the maps of "
            f"split {config.split!r} hold the {len(split.class_pixels)} of "
            f"{config.dataset}/{split.vocabulary}"
        )
    data = LabelledImages.of(
        _directory(config, "images", split),
        _directory(config, "masks", split),
        vocabulary,
        config.ignore_label or truth_ignore(len(vocabulary)),
        config.max_image_pixels,
    )
    return replace(data, num_maps=split.count) if split else data


def workers_of(config: TrainingExecution) -> Workers:
    """Return how many workers train, and what each of them takes of the cluster.

    Raises SettingsError where GPUs are not given and are too few, or not yet known.
    """
    given = config.gpus_per_worker
    num_gpus = gpus_of_workers(config.workers) if given is None else given
    return Workers(config.workers, config.cpus_per_worker, num_gpus, config.max_failures)


def seen_classes(vocabulary: Vocabulary, data: LabelledImages) -> Vocabulary:
    """Return the classes that are learned, in the order of their positions."""
    classes = zip(vocabulary.classes, data.seen, strict=True)
    return Vocabulary(classes=tuple(entry for entry, is_seen in classes if is_seen))


def refuse_other_settings(output: str, deciding: Mapping[str, Any]) -> None:
    """Raise SettingsError where the output is that of a training with other settings."""
    try:
        known = json.loads(read_bytes(output, SETTINGS_FILE))
    except FileNotFoundError:
        return
    except ValueError:
        raise OutputError(f"{output}/{SETTINGS_FILE} is no JSON; name a new output") from None
    others = [name for name in deciding if known.get(name) != deciding[name]]
    if others:
        told = ", ".join(f"{name} {known.get(name)!r}" for name in others[:_NAMED])
        raise SettingsError(
            f"{output} is the output of a training with other settings ({told}); give those "
            "to go on with it, or name a new output"
        )


def examine(
    config: TrainingDataSettings,
    output: str,
    data: LabelledImages,
    deciding: Mapping[str, Any],
    progress: Progress,
) -> list[Finding]:
    """Read every pair once, on the whole cluster; a run that goes on knows the result.

    Settings and findings are written once the data are known to do.
    """
    try:
        known = json.loads(read_bytes(output, DATA_FILE))
    except FileNotFoundError:
        pass
    else:
        return [
            Finding(Pair(image, mask), reason, detail, tuple(positions))
            for image, mask, reason, detail, positions in known["pairs"]
        ]
    pairs = data.pairs(config.extensions)
    progress.say(f"reading {len(pairs)} images and their label maps once")
    parts = [
        pairs[start : start + _PAIRS_PER_TASK] for start in range(0, len(pairs), _PAIRS_PER_TASK)
    ]
    found = [finding for part in runtime.map_tasks(data.examine, parts) for finding in part]
    usable(config, found)  # refuses before anything is recorded
    write_bytes(output, SETTINGS_FILE, json.dumps(deciding, indent=2).encode())
    rows = [[f.pair.image, f.pair.mask, f.reason, f.detail, f.positions] for f in found]
    content = {"images": str(data.images), "masks": str(data.masks), "pairs": rows}
    write_bytes(output, DATA_FILE, json.dumps(content).encode())
    return found


def usable(config: TrainingDataSettings, findings: Sequence[Finding]) -> list[Finding]:
    """Return what can be learned from; raises SettingsError when too little can."""
    bad = [finding for finding in findings if finding.is_bad]
    told = "; ".join(f"{f.pair.image}: {f.reason} ({f.detail})" for f in bad[:_NAMED])
    if len(bad) > config.max_bad_fraction * len(findings):
        raise SettingsError(
            f"{len(bad)} of {len(findings)} images cannot be learned from, more than "
            f"max_bad_fraction {config.max_bad_fraction}: {told}"
        )
    good = [finding for finding in findings if not finding.reason]
    if not good:
        raise SettingsError(
            f"none of {len(findings)} label maps has a pixel of a seen class; look at the seen "
            "flags of the vocabulary, and at ignore_label"
        )
    return good


def command_line(command: Sequence[str], config: Config) -> str:
    """Return the command line of what differs from the defaults."""
    words = ["segmill", *command]
    for name, value in config.model_dump(mode="json", exclude_defaults=True).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name.replace('_', '-')}")
            continue
        for item in value if isinstance(value, list) else [value]:
            words += [flag, str(item)]
    return shlex.join(words)


def _prepared_split(config: TrainingDataSettings) -> SplitFacts | None:
    """Return what dataset.json says of the split; None where there is no such file."""
    if config.dataset is None or not (config.dataset / DATASET_FILE).exists():
        return None
    return split_facts(read_dataset(config.dataset), config.dataset, config.split)


def _directory(config: TrainingDataSettings, kind: str, split: SplitFacts | None) -> Path:
    given: Path | None = getattr(config, kind)
    if given is not None:
        return given
    if config.dataset is None:
        raise SettingsError(f"give dataset, or {kind}")
    if split is not None:
        return config.dataset / (split.images if kind == "images" else split.masks)
    return config.dataset / kind / config.split
