"""Prepared data sets in detectron2's catalogue."""

import importlib.util

import pytest

from pipeline.datasets.detectron2_catalogue import register_in_detectron2
from schemas.errors import DatasetError
from tests import downloads
from tests.test_datasets import prepared

pytestmark = pytest.mark.filterwarnings("ignore")  # detectron2's own
HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None


@pytest.mark.skipif(HAS_DETECTRON2, reason="detectron2 is installed")
def test_without_detectron2_a_line_says_so(tmp_path):
    with pytest.raises(DatasetError, match="detectron2 is not installed"):
        register_in_detectron2(tmp_path)


@pytest.mark.skipif(not HAS_DETECTRON2, reason="detectron2 is not installed")
def test_detectron2_reads_every_split(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.detection_utils import read_image

    downloads.coco_stuff(tmp_path)
    root = prepared("coco-stuff", tmp_path)
    names = register_in_detectron2(root)
    assert names == tuple(
        f"segmill_coco-stuff_{split}" for split in ("train", "train_base", "val", "val_base")
    )
    try:
        (record,) = DatasetCatalog.get("segmill_coco-stuff_train_base")
        assert read_image(record["file_name"], "RGB").shape == (*downloads.SIZE, 3)
        assert read_image(record["sem_seg_file_name"])[::2, 0].tolist() == [0, 255, 255]
        base = MetadataCatalog.get("segmill_coco-stuff_train_base")
        whole = MetadataCatalog.get("segmill_coco-stuff_train")
        assert (len(base.stuff_classes), len(whole.stuff_classes)) == (156, 171)
        assert (whole.ignore_label, whole.evaluator_type) == (255, "sem_seg")
        with pytest.raises(DatasetError, match="has segmill_coco-stuff_train already"):
            register_in_detectron2(root)
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.skipif(not HAS_DETECTRON2, reason="detectron2 is not installed")
def test_detectron2s_evaluator_takes_maps_of_sixteen_bits(tmp_path):
    import torch
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import SemSegEvaluator

    downloads.pascal_context(tmp_path)
    names = register_in_detectron2(prepared("pascal-context-459", tmp_path))
    try:
        (record,) = DatasetCatalog.get("segmill_pascal-context-459_val")
        evaluator = SemSegEvaluator("segmill_pascal-context-459_val", distributed=False)
        evaluator.reset()
        scores_KHW = torch.zeros(459, *downloads.SIZE)
        scores_KHW[457] = 1  # everywhere wood, which is a third of the image
        evaluator.process([record], [{"sem_seg": scores_KHW}])
        assert evaluator.evaluate()["sem_seg"]["pACC"] == pytest.approx(100 / 3)
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
