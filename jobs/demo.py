"""`segmill demo`: synthetic scenes through the whole pipeline, on the embedded models."""

import json
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from jobs.annotate import annotate
from jobs.evaluate import evaluate
from jobs.progress import Progress, Silent
from jobs.report import report
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.storage import describe
from pipeline.synthetic import TEST_SEED, make_scene
from schemas.annotate_config import AnnotateConfig
from schemas.demo_config import DemoConfig
from schemas.errors import ModelError, OutputError
from schemas.evaluate_config import EvaluateConfig
from schemas.meter import RunMeter
from schemas.report_config import ReportConfig

EMBEDDED_QUALITY: Final = EMBEDDED_VOCABULARY.with_name("quality.json")
MARKER: Final = ".segmill-demo"
_MARKER_TEXT: Final = (
    "`segmill demo` made this directory. The next demo in it replaces scene-*.png in scenes/ and\n"
    "truth/, the dataset in labels/, and report.html; it leaves everything else alone.\n"
)
_MAX_CARDS: Final = 96  # a page of about 2 MB
_SCENE_NAME: Final = "scene-{:05d}.png"
_DATASET_PARTS: Final = ("images", "embeddings", "_manifest", "_runs", "_lock")


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured on its scenes (fractions), and the page to look at."""

    images: int
    seconds: float
    seen_miou: float
    unseen_miou: float
    hiou: float
    report: Path
    meter: RunMeter | None


def demo(config: DemoConfig, progress: Progress | None = None) -> DemoResult:
    """Make scenes, annotate them, compare with their truth and write the report.

    Raises OutputError when the output directory holds something that is not an earlier demo, and
    ModelError when the embedded models are absent.
    """
    started = time.monotonic()
    progress = progress or Silent()
    settings = chosen_settings(EMBEDDED_QUALITY)
    prepare_directory(config.output)
    scenes, truth, labels = (config.output / name for name in ("scenes", "truth", "labels"))
    progress.say(f"drawing {config.images} scenes")
    write_scenes(scenes, truth, config.images, config.seed)
    annotated = annotate(
        AnnotateConfig(
            source=str(scenes),
            vocabulary=EMBEDDED_VOCABULARY,
            output=str(labels),
            **settings,
        ),
        progress,
    )
    progress.say("comparing with the truth")
    quality = evaluate(EvaluateConfig(dataset=str(labels), truth=str(truth), version=None))
    progress.say("writing the report")
    page = report(
        ReportConfig(
            dataset=str(labels),
            output=config.output / "report.html",
            truth=str(truth),
            version=None,
            max_images=min(config.images, _MAX_CARDS),
        )
    )
    return DemoResult(
        images=config.images,
        seconds=time.monotonic() - started,
        seen_miou=_figure(quality.headline.seen_miou),
        unseen_miou=_figure(quality.headline.unseen_miou),
        hiou=_figure(quality.headline.hiou),
        report=page.output,
        meter=annotated.meter,
    )


def prepare_directory(output: Path) -> None:
    """Make `output` a demo directory without results; only what an earlier demo made is deleted.

    Raises OutputError for a directory that holds anything but has no marker of ours.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not (output / MARKER).is_file() and any(output.iterdir()):
            raise OutputError(
                f"{output} is not empty and was not made by a demo; name another directory"
            )
        (output / MARKER).write_text(_MARKER_TEXT)
        _delete_results(output)
    except FileExistsError:
        raise OutputError(f"cannot write {output}: it is a file, not a directory") from None
    except OSError as error:
        raise OutputError(f"cannot write {output}: {describe(error)}") from None


def write_scenes(scenes: Path, truth: Path, count: int, seed: int) -> None:
    """Write scenes and, under equal names, their label maps of class indices, as PNG.

    Seed 0 gives the scenes of which the embedded models' quality is reported.
    """
    try:
        scenes.mkdir(exist_ok=True)
        truth.mkdir(exist_ok=True)
        for index in range(count):
            scene = make_scene(TEST_SEED + seed, index)
            name = _SCENE_NAME.format(index)
            Image.fromarray(scene.image_HW3).save(scenes / name)
            Image.fromarray(scene.label_map_HW).save(truth / name)
    except OSError as error:
        raise OutputError(f"cannot write scenes to {scenes.parent}: {describe(error)}") from None


def chosen_settings(quality_file: Path) -> dict[str, Any]:
    """Return the settings chosen for the embedded models on validation scenes.

    Raises ModelError when the models were never measured.
    """
    try:
        quality = json.loads(quality_file.read_text())
    except OSError as error:
        raise ModelError(
            f"cannot read {quality_file}: {describe(error)}; "
            "`python -m jobs.train_embedded` makes it"
        ) from None
    chosen = quality["chosen_on_validation"]
    return {
        "prompts": quality["prompts"],
        "ensemble_weight": chosen["weight"],
        "mask_threshold": chosen["mask_threshold"],
    }


def _delete_results(output: Path) -> None:
    for directory in (output / "scenes", output / "truth"):
        for path in directory.glob("scene-*.png"):
            path.unlink()
    for name in _DATASET_PARTS:
        with suppress(FileNotFoundError):
            shutil.rmtree(output / "labels" / name)
    (output / "report.html").unlink(missing_ok=True)


def _figure(value: float | None) -> float:
    return float("nan") if value is None else value
