"""Prepared maps as the truth of an evaluation, of eight and of sixteen bits."""

import numpy as np
import pyarrow as pa
import pytest

from jobs.evaluate import evaluate
from pipeline.dataset import publish
from pipeline.datasets.layout import read_dataset, read_split, read_split_vocabulary
from pipeline.metrics import BoundaryCounts, Confusion, truth_ignore
from pipeline.parts import write_images
from pipeline.segments import encode_segments
from pipeline.truth import read_label_map
from schemas.annotation import ANNOTATED, LABELLED, image_id
from schemas.evaluate_config import EvaluateConfig
from schemas.manifest import Counts
from tests import downloads
from tests.test_datasets import prepared
from tests.test_manifest import MANIFEST


def publish_truth(root, split, output):
    """Publish labels that are the truth of a split itself, but for one pixel of its first image."""
    vocabulary = read_split_vocabulary(root, split)
    rows = []
    for image, mask in read_split(root, split):
        map_HW = read_label_map(mask)
        map_HW = np.where(map_HW == truth_ignore(len(vocabulary)), 0, map_HW).astype(np.int32)
        map_HW[0, 0] = (map_HW[0, 0] + (not rows)) % len(vocabulary)
        height, width = map_HW.shape
        scores_HW = np.full(map_HW.shape, 0.5, np.float32)
        rows.append({
            "image_id": image_id(image.name), "uri": image.as_uri(), "fingerprint": "f",
            "run_id": "run", "annotator": "model",
            "n_proposals": 3, "height": height, "width": width,
            "segments": encode_segments(map_HW, scores_HW, vocabulary.names, 0.0),
            "status": LABELLED,
        })  # fmt: skip
    part = write_images(output, "run", pa.Table.from_pylist(rows, schema=ANNOTATED))
    counts = Counts(inventory=len(rows), labelled=len(rows), quarantined=0, reasons={})
    changes = {"images": (part,), "vocabulary": vocabulary, "counts": counts, "version": 1}
    publish(output, MANIFEST.model_copy(update=changes))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("coco-stuff", downloads.coco_stuff),
        ("pascal-context-459", downloads.pascal_context),
        ("cityscapes", downloads.cityscapes),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_maps_of_a_split_are_the_truth_of_an_evaluation(tmp_path, name, make, split):
    make(tmp_path)
    root = prepared(name, tmp_path)
    output = str(tmp_path / "labels")
    publish_truth(root, split, output)
    facts = read_dataset(root).splits[split]
    found = evaluate(EvaluateConfig(dataset=output, truth=str(root / "masks" / split)))
    assert (found.images, found.without_truth) == (facts.count, 0)
    counted = sum(facts.class_pixels)
    first = read_label_map(next(read_split(root, split)).mask)[0, 0]
    wrong = int(first != truth_ignore(len(read_split_vocabulary(root, split))))
    assert found.pixel_accuracy == pytest.approx(1 - wrong / counted)


def test_65535_is_ignored_where_255_is_a_class():
    truth_HW = np.array([[255, 65535], [0, 255]])
    predicted_HW = np.array([[255, 255], [0, 0]])
    confusion = Confusion.of(predicted_HW, truth_HW, 256)
    assert confusion.truth.sum() == 3 and confusion.hits.sum() == 2
    assert BoundaryCounts.of(predicted_HW, truth_HW, 256).truth.sum() == 3
    assert (truth_ignore(255), truth_ignore(256)) == (255, 65535)
    with pytest.raises(ValueError, match="there are 255 classes"):
        Confusion.of(predicted_HW, truth_HW, 255)
