"""Corrections through later runs: kept under other settings, gone with the bytes of their image."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.annotate import annotate
from jobs.correct import correct
from jobs.relabel import relabel
from jobs.verify import verify
from pipeline.dataset import read_manifest
from pipeline.synthetic import make_scene
from pipeline.training_data import VersionImages
from schemas.annotation import HUMAN, MODEL
from schemas.export_config import TrainingDataConfig
from schemas.relabel_config import RelabelConfig
from schemas.trust_config import CorrectConfig
from schemas.upkeep_config import VerifyConfig
from tests.dataset_checks import check_rows, rows_of
from tests.test_correct import answer, region
from tests.test_incremental import write_scene
from tests.test_relabel import settings_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

NAMES = "classes: [gravel, green ring, red circle]"


def annotators(dataset: str) -> dict[str, str]:
    return {Path(row["uri"]).name: row["annotator"] for row in rows_of(dataset)}


def test_corrections_stay_until_their_image_changes(tmp_path: Path) -> None:
    photos, dataset = tmp_path / "photos", str(tmp_path / "labels")
    photos.mkdir()
    for index in range(3):
        write_scene(photos, f"{index}.png", index)
    settings = settings_of(photos, dataset, keep_embeddings="compact")
    annotate(settings)
    rows = {Path(row["uri"]).name: row for row in rows_of(dataset)}
    assert set(annotators(dataset).values()) == {MODEL}

    corrected = rows["1.png"]
    left_HW = np.zeros((corrected["height"], corrected["width"]), bool)
    left_HW[:, :10] = True
    data = {"image_id": corrected["image_id"], "bytes_sha256": corrected["bytes_sha256"]}
    drawn = [region("red circle", left_HW), region("blue square", ~left_HW)]
    correct(CorrectConfig(dataset=dataset, reviews=answer(tmp_path, [{"data": data}], drawn)))
    wanted = {"0.png": MODEL, "1.png": HUMAN, "2.png": MODEL}
    assert annotators(dataset) == wanted

    assert annotate(settings).published is False

    names = tmp_path / "names.yaml"
    names.write_text(NAMES)
    relabelled = relabel(RelabelConfig(dataset=dataset, vocabulary=names, min_score=0.2))
    assert (relabelled.version, relabelled.changes.done) == (3, 3)
    assert annotators(dataset) == wanted and read_manifest(dataset).corrections
    (row,) = (row for row in rows_of(dataset) if row["annotator"] == HUMAN)
    ((segment,),) = [row["segments"]]  # of "blue square" nothing is left
    assert (segment["label"], segment["class_index"], segment["score"]) == ("red circle", 2, 1.0)
    assert segment["box"] == [0, 0, 10, corrected["height"]]

    samples = map(VersionImages(TrainingDataConfig(dataset=dataset)).__getitem__, range(3))
    (trained_on,) = (one for one in samples if one["image_id"] == row["image_id"])
    np.testing.assert_array_equal(trained_on["labels"].numpy(), np.where(left_HW, 2, 255))

    settings = settings_of(
        photos, dataset, vocabulary=names, min_score=0.2, keep_embeddings="compact"
    )
    os.utime(photos / "1.png", (1, 1))  # copied, or checked out again
    touched = annotate(settings)
    assert (touched.version, touched.changes.done) == (4, 1)
    assert annotators(dataset) == wanted
    (moved,) = (row for row in rows_of(dataset) if row["annotator"] == HUMAN)
    for same in ("bytes_sha256", "segments", "fingerprint"):
        assert moved[same] == row[same]
    assert moved["etag"] != row["etag"]
    assert annotate(settings).published is False

    (photos / "1.png").rename(photos / "renamed.png")
    renamed = annotate(settings)
    assert (renamed.version, renamed.changes.done, renamed.changes.removed) == (5, 1, 1)
    assert annotate(settings).published is False
    relabel(RelabelConfig(dataset=dataset, min_score=0.1))
    assert annotators(dataset) == {"0.png": MODEL, "renamed.png": HUMAN, "2.png": MODEL}

    Image.fromarray(make_scene(1, 77).image_HW3).save(photos / "renamed.png")
    changed = annotate(settings.model_copy(update={"min_score": 0.1}))
    assert (changed.version, changed.changes.done) == (7, 1)
    assert set(annotators(dataset).values()) == {MODEL}
    assert len(read_manifest(dataset).embeddings) == 1  # however many runs added some
    check_rows(rows_of(dataset), whole=False)
    assert verify(VerifyConfig(dataset=dataset, all_label_maps=True)).problems == ()
