"""New names, prompts and thresholds from kept embeddings."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.annotate import annotate
from jobs.annotation_plan import AnnotationPlan, recorded_settings
from jobs.annotation_run import AnnotationRun, holding
from jobs.relabel import relabel
from pipeline.dataset import publish, read_manifest, versions
from pipeline.files import list_files
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.run_records import newest_runs
from pipeline.segments import decode_label_map
from pipeline.verification import check_version
from schemas.annotate_config import AnnotateConfig
from schemas.errors import OutputError, PublicationError, SettingsError
from schemas.manifest import Encoding
from schemas.relabel_config import RelabelConfig
from tests.dataset_checks import check_rows, rows_of
from tests.test_incremental import write_scene

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

CLASSES = "classes: [red circle, {name: blue square, seen: true}, green ring, gravel]"
IMAGES = 6


def settings_of(source: Path, output: Path | str, **changes: Any) -> AnnotateConfig:
    chosen: dict[str, Any] = {
        "source": str(source), "output": str(output), "vocabulary": EMBEDDED_VOCABULARY,
        "propose_batch": 1, "classify_batch": 1, "max_bad_fraction": 1.0,
    }  # fmt: skip
    return AnnotateConfig(**{**chosen, **changes})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(IMAGES):
        write_scene(folder, f"{index}.png", index)
    (folder / "bad.png").write_bytes(b"not pixels")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Iterator[dict[str, Path]]:
    """A dataset with embeddings of each encoding, and what a full run with the new names gives."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "few.yaml").write_text(CLASSES)
    for encoding in ("exact", "compact"):
        annotate(settings_of(source, folder / encoding, keep_embeddings=encoding))
    annotate(settings_of(source, folder / "full", vocabulary=folder / "few.yaml", prompts="vild"))
    yield {name: folder / name for name in ("exact", "compact", "full", "few.yaml")}


@pytest.fixture(params=["exact", "compact"])
def kept(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(made[request.param], tmp_path / request.param)
    return tmp_path / request.param


def label_maps(dataset: Path) -> dict[str, Any]:
    return {
        Path(row["uri"]).name: decode_label_map(row["segments"], (row["height"], row["width"]))
        for row in rows_of(str(dataset))
        if row["status"] == "labelled"
    }


def test_labels_are_those_of_a_full_run(kept: Path, made: dict[str, Path]) -> None:
    encoding: Encoding = "exact" if kept.name == "exact" else "compact"
    config = RelabelConfig(dataset=str(kept), vocabulary=made["few.yaml"], prompts="vild")
    result = relabel(config)
    changes = result.changes
    assert (result.version, changes.done, changes.from_embeddings) == (2, IMAGES, IMAGES)
    assert (changes.kept, changes.removed, result.counts.quarantined) == (1, 0, 1)
    assert versions(str(kept)) == [1, 2]

    manifest = read_manifest(str(kept))
    assert manifest.vocabulary.names[:2] == ("red circle", "blue square")
    assert manifest.config["prompts"] == "vild" and manifest.config["ensemble_weight"] == 0.8
    assert {file.encoding for file in manifest.embeddings} == {encoding}
    assert check_version(str(kept), manifest, None)[0] == []
    check_rows(rows_of(str(kept)), whole=True)

    expected, found = label_maps(made["full"]), label_maps(kept)
    assert expected.keys() == found.keys() and len(found) == IMAGES
    agreement = np.mean([np.mean(expected[name] == found[name]) for name in expected])
    assert agreement == 1.0 if encoding == "exact" else agreement > 0.98

    # Again there is nothing to do, and the first version can still be read.
    again = relabel(config)
    assert (again.published, again.changes.done) == (False, 0)
    assert len(read_manifest(str(kept), 1).vocabulary.names) == 72


def test_what_is_not_given_stays(kept: Path) -> None:
    first = relabel(RelabelConfig(dataset=str(kept), min_score=0.4))
    assert first.changes.done == IMAGES
    second = relabel(RelabelConfig(dataset=str(kept), ensemble_weight=0.5))
    assert second.version == 3
    config = read_manifest(str(kept)).config
    assert (config["min_score"], config["ensemble_weight"]) == (0.4, 0.5)
    # `status` tells them from the runs that read the source.
    told = [record.command for record in newest_runs(str(kept), 3)]
    assert told == ["relabel", "relabel", "annotate"]


def test_a_version_made_elsewhere_is_labelled_again_here(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = str(tmp_path / "labels")
    shutil.copytree(made["exact"], dataset)
    first = read_manifest(dataset)
    of_a_cluster = {
        "address": "auto", "propose_resources": {"propose": 1.0}, "classify_accelerator": "L4",
        "propose_gpus": 1.0, "ship_code": True, "object_store_mb": 500, "source": "photos",
    }  # fmt: skip
    recorded = first.model_copy(update={"config": {**first.config, **of_a_cluster}})
    (tmp_path / "labels" / "_manifest" / "v000001.json").write_text(recorded.model_dump_json())
    monkeypatch.chdir(tmp_path)  # "photos" would be another folder here
    assert relabel(RelabelConfig(dataset=dataset, min_score=0.2)).version == 2
    second = read_manifest(dataset)
    assert second.source == first.source
    settings = AnnotateConfig.model_validate(second.config)
    assert (settings.address, settings.propose_resources, settings.ship_code) == (
        "local",
        {},
        False,
    )
    assert (settings.propose_gpus, settings.object_store_mb) == (None, None)


def test_of_the_machines_of_a_version_the_precision_of_masks_alone_is_kept(
    made: dict[str, Path],
) -> None:
    manifest = read_manifest(str(made["exact"]))
    config = {**manifest.config, "mask_precision": "uint8", "classify_batch": 64}
    manifest = manifest.model_copy(update={"config": config})
    found = recorded_settings("labels", manifest, {"output": "labels", "min_score": 0.3})
    assert (found.mask_precision, found.classify_batch, found.min_score) == ("uint8", 8, 0.3)


def test_a_version_that_another_run_published_meanwhile_is_not_undone(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = str(tmp_path / "labels")
    shutil.copytree(made["exact"], dataset)

    def late(*arguments: Any, **options: Any) -> AbstractContextManager[AnnotationRun]:
        publish(dataset, read_manifest(dataset).model_copy(update={"version": 2}))
        return holding(*arguments, **options)

    monkeypatch.setattr("jobs.relabel.holding", late)
    with pytest.raises(PublicationError, match=r"^version 2 of .* since version 1 was read"):
        relabel(RelabelConfig(dataset=dataset, min_score=0.2))
    assert versions(dataset) == [1, 2]


def test_an_annotation_after_it_does_what_the_relabelling_could_not_give(
    kept: Path, source: Path, made: dict[str, Path]
) -> None:
    relabel(RelabelConfig(dataset=str(kept), vocabulary=made["few.yaml"], prompts="vild"))
    settings = {"vocabulary": made["few.yaml"], "prompts": "vild"}
    is_exact = kept.name == "exact"
    # Who asks for no compact embeddings gets labels of full runs alone.
    full = annotate(settings_of(source, kept, **settings))
    assert full.changes.done == (0 if is_exact else IMAGES)
    assert all(
        (label_maps(kept)[name] == expected).all()
        for name, expected in label_maps(made["full"]).items()
    )


def test_compact_embeddings_are_small(made: dict[str, Path]) -> None:
    sizes = {
        name: sum(file.size_bytes for file in read_manifest(str(made[name])).embeddings)
        for name in ("exact", "compact")
    }
    assert sizes["compact"] < 0.5 * sizes["exact"]
    assert label_maps(made["exact"]).keys() == label_maps(made["compact"]).keys()
    for name, expected in label_maps(made["exact"]).items():
        # The run that keeps compact embeddings labels from what it has not yet compacted.
        assert (label_maps(made["compact"])[name] == expected).all()


def test_finished_parts_of_a_run_that_was_cut_short_are_left_to_it(
    kept: Path, made: dict[str, Path]
) -> None:
    record = kept / "_runs" / "20260101T000000Z-abcdef" / "parts" / "1.json"
    record.parent.mkdir(parents=True)
    part = '{"images": %s, "embeddings": null}'
    file = read_manifest(str(made["full"])).images[0]
    (kept / file.path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(made["full"] / file.path, kept / file.path)
    record.write_text(part % file.model_dump_json())
    relabel(RelabelConfig(dataset=str(kept), min_score=0.3))
    assert record.exists() and (kept / file.path).exists()
    assert not [path for path in list_files(str(kept), "_runs") if "/todo/" in path]


def test_nothing_to_relabel_from_is_said_before_any_work(
    made: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"nothing holds no published dataset"):
        relabel(RelabelConfig(dataset=str(tmp_path / "nothing")))
    with pytest.raises(SettingsError, match=r"version 1 of .*full keeps no embeddings"):
        relabel(RelabelConfig(dataset=str(made["full"])))
    mixed = tmp_path / "mixed"
    shutil.copytree(made["exact"], mixed)
    manifest = read_manifest(str(mixed))
    other = manifest.model_copy(update={"config": {**manifest.config, "mask_threshold": 0.3}})
    (mixed / "_manifest" / "v000001.json").write_text(other.model_dump_json())
    future = manifest.model_copy(update={"config": {**manifest.config, "telepathy": True}})
    shutil.copytree(mixed, tmp_path / "future")
    (tmp_path / "future" / "_manifest" / "v000001.json").write_text(future.model_dump_json())
    with pytest.raises(OutputError, match=r"another version of segmill, .* \(telepathy\)"):
        relabel(RelabelConfig(dataset=str(tmp_path / "future")))
    with pytest.raises(SettingsError, match=r"6 of 7 images have no embeddings of these settings"):
        relabel(RelabelConfig(dataset=str(mixed), min_score=0.1))


def test_prompts_that_nobody_asked_to_change_stay_what_they_were(
    made: dict[str, Path], tmp_path: Path
) -> None:
    dataset, file = tmp_path / "labels", tmp_path / "prompts.txt"
    shutil.copytree(made["exact"], dataset)
    file.write_text("a photo of a {}.\n")
    relabel(RelabelConfig(dataset=str(dataset), prompts=str(file)))
    relabel(RelabelConfig(dataset=str(dataset), min_score=0.1))
    file.write_text("a blurry x-ray of no {}.\n")
    with pytest.raises(SettingsError, match=r"the prompts of version 3 came from .*prompts\.txt"):
        relabel(RelabelConfig(dataset=str(dataset), min_score=0.2))
    assert relabel(RelabelConfig(dataset=str(dataset), prompts=str(file))).version == 4


def test_a_truth_that_is_corrected_in_its_place_makes_other_labels(
    source: Path, tmp_path: Path
) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    prints = []
    for value in (0, 1):
        Image.new("L", (8, 8), value).save(truth / "0.png")
        config = settings_of(source, tmp_path / "labels", oracle_truth=str(truth))
        prints.append(AnnotationPlan.of(config).fingerprints.label)
    assert prints[0] != prints[1]


def test_compact_embeddings_of_what_has_no_masks_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"oracle_truth compares masks"):
        settings_of(source, tmp_path, keep_embeddings="compact", oracle_truth=str(tmp_path))
