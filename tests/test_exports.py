"""Every export format, read back without our code and compared with the dataset pixel by pixel.

The readers that people use are asked as well, where they are installed: datasets and webdataset
(the `readers` extra), datumaro, label-studio-sdk, fiftyone, detectron2, panopticapi, OpenCV.
"""

import json
import re
import tarfile
import xml.etree.ElementTree as ET
from functools import cache
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage
from skimage.draw import line, polygon

from jobs.export import export
from pipeline.datasets.layout import read_dataset, read_split, read_split_vocabulary
from pipeline.exports import find_format
from pipeline.exports.cvat import row_runs
from pipeline.exports.label_studio import brush_rle, local_file
from pipeline.exports.output import Export, Shard
from pipeline.exports.polygons import trace
from pipeline.exports.records import TRAIN, VAL, ExportImage, ExportSegment, split_of
from pipeline.segments import encode_mask
from pipeline.truth import read_indices
from schemas.export_config import ExportConfig
from tests.dataset_checks import rows_of
from tests.export_ground import NAMES, publish_ground, ragged_map, truth_of
from tests.helpers import draw

Maps = dict[str, NDArray[np.integer[Any]]]
SPLITS = (TRAIN, VAL)


class Ground:
    """A dataset and its exports, each made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = publish_ground(folder)
        rows = [row for row in rows_of(self.dataset) if row["status"] == "labelled"]
        self.truth = {row["image_id"]: truth_of(row) for row in rows}
        # Ids are of the folder's name too: with some seeds all six would be of one split.
        self.split_seed = next(
            seed
            for seed in count()
            if {split_of(one, 0.4, seed) for one in self.truth} == {*SPLITS}
        )
        self.made = cache(self._make)

    def _make(self, name: str) -> Path:
        output = self.folder / name
        export(
            ExportConfig(
                dataset=self.dataset, format=name, output=str(output), val_fraction=0.4,
                split_seed=self.split_seed, images_per_shard=3,
            )
        )  # fmt: skip
        return output

    def index(self, name: str) -> dict[str, dict[str, str]]:
        lines = (self.made(name) / "index.jsonl").read_text().splitlines()
        return {entry["name"]: entry for entry in map(json.loads, lines)}

    def check(self, name: str, found: Maps, ignore: int = -1) -> None:
        """Compare label maps by file name with the dataset; every image must be there once."""
        index = self.index(name)
        assert len(found) == len(index) == len(self.truth) == 6
        for stem, labels_HW in found.items():
            truth_HW = self.truth[index[stem]["image_id"]]
            expected_HW = np.where(truth_HW < 0, ignore, truth_HW)
            np.testing.assert_array_equal(labels_HW, expected_HW, err_msg=stem)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


def stem(path: str) -> str:
    return Path(path).stem


def png(path: Path | bytes) -> NDArray[Any]:
    with Image.open(BytesIO(path) if isinstance(path, bytes) else path) as file:
        return np.asarray(file)


@pytest.mark.parametrize("name", ["coco-instances", "coco-polygons"])
def test_coco_gives_the_same_masks_by_pycocotools(ground: Ground, name: str) -> None:
    found: Maps = {}
    numbers: set[int] = set()
    for split in SPLITS:
        coco = COCO(ground.made(name) / "annotations" / f"instances_{split}.json")
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(NAMES)
        for image in coco.loadImgs(coco.getImgIds()):
            labels_HW = np.full((image["height"], image["width"]), -1)
            for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
                assert isinstance(annotation["segmentation"], list) == (name == "coco-polygons")
                mask_HW = coco.annToMask(annotation).astype(bool)
                assert annotation["area"] == mask_HW.sum()
                rle = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
                assert annotation["bbox"] == coco_mask.toBbox(rle).tolist()
                assert (labels_HW[mask_HW] == -1).all()
                labels_HW[mask_HW] = annotation["category_id"] - 1
                assert annotation["id"] not in numbers
                numbers.add(annotation["id"])
            found[stem(image["file_name"])] = labels_HW
            with Image.open(ground.made(name) / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
    ground.check(name, found)


def panoptic(ground: Ground, split: str) -> tuple[dict[str, Any], Path]:
    root = ground.made("coco-panoptic") / "annotations"
    return json.loads((root / f"panoptic_{split}.json").read_text()), root / f"panoptic_{split}"


def test_panoptic_colours_are_the_ids_of_its_segments(ground: Ground) -> None:
    found: Maps = {}
    for split in SPLITS:
        content, folder = panoptic(ground, split)
        assert {category["isthing"] for category in content["categories"]} == {0}
        category_of = {category["id"]: category["name"] for category in content["categories"]}
        assert len(content["images"]) == len(content["annotations"])
        for annotation in content["annotations"]:
            rgb = png(folder / annotation["file_name"]).astype(np.int64)
            ids_HW = rgb @ (1, 256, 256**2)
            segments = {segment["id"]: segment for segment in annotation["segments_info"]}
            assert set(np.unique(ids_HW)) - {0} == set(segments)
            labels_HW = np.full(ids_HW.shape, -1)
            for number, segment in segments.items():
                assert segment["area"] == (ids_HW == number).sum()
                labels_HW[ids_HW == number] = NAMES.index(category_of[segment["category_id"]])
            found[stem(annotation["file_name"])] = labels_HW
    ground.check("coco-panoptic", found)


def test_panopticapi_finds_the_export_equal_to_itself(ground: Ground) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation", reason="panopticapi is on no index")
    content, folder = panoptic(ground, TRAIN)
    categories = {category["id"]: category for category in content["categories"]}
    by_image = {annotation["image_id"]: annotation for annotation in content["annotations"]}
    pairs = [(by_image[image["id"]],) * 2 for image in content["images"]]
    stat = evaluation.pq_compute_single_core(0, pairs, str(folder), str(folder), categories)
    quality, _ = stat.pq_average(categories, isthing=None)
    assert quality["pq"] == 1.0 and quality["n"] == len(NAMES)


def test_semantic_png_has_vocs_colours_and_trains_as_a_prepared_data_set(ground: Ground) -> None:
    root = ground.made("semantic-png")
    found: Maps = {}
    for split in SPLITS:
        names = (root / f"{split}.txt").read_text().split()
        for name in names:
            with Image.open(root / "masks" / split / f"{name}.png") as file:
                # The colours of VOC's classes 0 to 4 and of its void, from its documentation.
                palette = np.array(file.getpalette()).reshape(-1, 3)
                assert file.mode == "P" and palette[255].tolist() == [224, 224, 192]
                first = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
                assert palette[:5].tolist() == first
                found[name] = np.asarray(file)
        pairs = list(read_split(root, split))
        assert [stem(str(pair.mask)) for pair in pairs] == sorted(names)
        for pair in pairs:
            labels_HW = read_indices(pair.mask)
            np.testing.assert_array_equal(labels_HW, found[stem(str(pair.mask))])
            assert png(pair.image).shape[:2] == labels_HW.shape
        facts = read_dataset(root).splits[split]
        pixels = np.concatenate([found[name].ravel() for name in names])
        assert facts.ignored_pixels == (pixels == 255).sum()
        assert facts.class_pixels == tuple((pixels == index).sum() for index in range(5))
        assert read_split_vocabulary(root, split).names == NAMES
    ground.check("semantic-png", found, ignore=255)
    assert (root / "classes.txt").read_text().splitlines() == list(NAMES)


def test_detectron2_reads_images_maps_and_names(ground: Ground) -> None:
    root = ground.made("detectron2-sem-seg")
    metadata = json.loads((root / "metadata.json").read_text())
    assert metadata["stuff_classes"] == list(NAMES) and metadata["ignore_label"] == 255
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {str(i): i for i in range(5)}
    maps = {path.stem: png(path) for path in root.glob("annotations/*/*.png")}
    ground.check("detectron2-sem-seg", maps, ignore=255)
    coco = pytest.importorskip("detectron2.data.datasets.coco", reason="no detectron2")
    from detectron2.data import MetadataCatalog

    MetadataCatalog.get("segmill-export").set(**metadata)
    found: Maps = {}
    for split in SPLITS:
        records = coco.load_sem_seg(
            str(root / "annotations" / split), str(root / "images" / split), image_ext="jpg"
        )
        for record in records:
            labels_HW = png(Path(record["sem_seg_file_name"]))
            assert png(Path(record["file_name"])).shape[:2] == labels_HW.shape
            found[stem(record["file_name"])] = labels_HW
    assert found and all((maps[name] == labels_HW).all() for name, labels_HW in found.items())


def filled(vertices_N2: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a polygon by the even-odd rule and paint its outline, as OpenCV's fillPoly does."""
    mask_HW = np.zeros(size, bool)
    mask_HW[polygon(vertices_N2[:, 1], vertices_N2[:, 0], size)] = True
    for (x0, y0), (x1, y1) in zip(vertices_N2, np.roll(vertices_N2, -1, axis=0), strict=True):
        mask_HW[line(y0, x0, y1, x1)] = True
    return mask_HW


def yolo_polygons(ground: Ground) -> Any:
    root = ground.made("yolo-seg")
    for path in sorted(root.glob("labels/*/*.txt")):
        (picture,) = root.glob(f"images/{path.parent.name}/{path.stem}.*")
        size = png(picture).shape[:2]
        polygons = []
        for words in map(str.split, path.read_text().splitlines()):
            shares_N2 = np.array(words[1:], float).reshape(-1, 2)
            assert len(shares_N2) >= 3 and shares_N2.min() >= 0 and shares_N2.max() <= 1
            # As the trainers do: multiply, cut off the fraction.
            polygons.append((int(words[0]), (shares_N2 * size[::-1]).astype(np.int64)))
        yield path.stem, size, polygons


def test_yolo_polygons_fill_to_the_same_masks(ground: Ground) -> None:
    found: Maps = {}
    for name, size, polygons in yolo_polygons(ground):
        labels_HW = np.full(size, -1)
        for index, vertices_N2 in polygons:
            labels_HW[filled(vertices_N2, size)] = index
        found[name] = labels_HW
    ground.check("yolo-seg", found)
    content = yaml.safe_load((ground.made("yolo-seg") / "data.yaml").read_text())
    assert "path" not in content  # Ultralytics would take it from the working directory
    assert content["names"] == dict(enumerate(NAMES))
    assert (content["train"], content["val"]) == ("images/train", "images/val")


def test_opencv_fills_yolo_polygons_to_the_same_masks(ground: Ground) -> None:
    cv2 = pytest.importorskip("cv2", reason="no OpenCV")
    found: Maps = {}
    for name, size, polygons in yolo_polygons(ground):
        labels_HW = np.full(size, -1, np.int32)
        for index, vertices_N2 in polygons:
            cv2.fillPoly(labels_HW, [vertices_N2.astype(np.int32)], index)
        found[name] = labels_HW
    ground.check("yolo-seg", found)


def test_hugging_face_files_are_plain_parquet(ground: Ground) -> None:
    root = ground.made("hugging-face")
    found: Maps = {}
    for path in root.glob("data/*.parquet"):
        for row in pd.read_parquet(path).to_dict("records"):
            labels_HW = png(row["mask"]["bytes"])
            assert png(row["image"]["bytes"]).shape[:2] == labels_HW.shape
            assert set(row["classes"]) == set(np.unique(labels_HW)) - {255}
            assert len(row["scores"]) == len(row["classes"])
            found[stem(row["mask"]["path"])] = labels_HW
    ground.check("hugging-face", found, ignore=255)


def test_datasets_loads_the_export(ground: Ground, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="no `datasets`")
    loaded = datasets.load_dataset(str(ground.made("hugging-face")), cache_dir=str(tmp_path))
    index = {entry["image_id"]: name for name, entry in ground.index("hugging-face").items()}
    found: Maps = {}
    for split in SPLITS:
        assert loaded[split].features["classes"].feature.names == list(NAMES)
        for row in loaded[split]:
            assert row["image"].size == row["mask"].size
            found[index[row["image_id"]]] = np.asarray(row["mask"])
    ground.check("hugging-face", found, ignore=255)


def test_a_tar_holds_image_map_and_facts_side_by_side(ground: Ground) -> None:
    found: Maps = {}
    for path in ground.made("webdataset").glob("*.tar"):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            for first in range(0, len(names), 3):
                name, _, suffix = names[first].partition(".")
                assert names[first + 1 : first + 3] == [f"{name}.seg.png", f"{name}.json"]
                found[name] = png(tar.extractfile(names[first + 1]).read())
                facts = json.loads(tar.extractfile(names[first + 2]).read())
                assert (facts["height"], facts["width"]) == found[name].shape
                assert suffix in ("jpg", "png")
                for segment in facts["segments"]:
                    assert NAMES[segment["class_index"]] == segment["label"]
                    assert (found[name] == segment["class_index"]).sum() == segment["area"]
    ground.check("webdataset", found, ignore=255)


def test_webdataset_pairs_them(ground: Ground) -> None:
    wds = pytest.importorskip("webdataset", reason="no webdataset")
    found: Maps = {}
    for path in sorted(ground.made("webdataset").glob("*.tar")):
        read_map = wds.handle_extension("seg.png", png)
        for sample in wds.WebDataset(str(path), shardshuffle=False).decode(read_map, "pil"):
            picture = sample.get("jpg") or sample["png"]
            found[sample["__key__"]] = sample["seg.png"]
            assert picture.size[::-1] == sample["seg.png"].shape
            assert len(sample["json"]["segments"]) == 5
    ground.check("webdataset", found, ignore=255)


def read_brush(data: list[int]) -> NDArray[np.uint8]:
    """Read the bit stream of rle-pack, as its description has it."""
    bits = "".join(f"{byte:08b}" for byte in data)
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeats = take(1)
        count = take(sizes[take(2)]) + 1
        values += [take(word)] * count if repeats else [take(word) for _ in range(count)]
    return np.array(values, np.uint8)


def brush_maps(ground: Ground, read: Any) -> Maps:
    root = ground.made("label-studio")
    labels = [entry.get("value") for entry in ET.parse(root / "label_config.xml").iter("Label")]
    assert labels == list(NAMES)
    found: Maps = {}
    for path in root.glob("tasks/*.json"):
        for task in json.loads(path.read_text()):
            place = task["data"]["image"].removeprefix("/data/local-files/?d=")
            width, height = Image.open(root / place).size
            labels_HW = np.full((height, width), -1)
            (prediction,) = task["predictions"]
            for result in prediction["result"]:
                assert (result["original_width"], result["original_height"]) == (width, height)
                rgba_HW4 = read(result["value"]["rle"]).reshape(height, width, 4)
                assert set(np.unique(rgba_HW4)) <= {0, 255}
                (label,) = result["value"]["brushlabels"]
                labels_HW[rgba_HW4[..., 3] > 0] = NAMES.index(label)
            found[stem(place)] = labels_HW
    return found


def test_label_studio_brushes_paint_the_same_masks(ground: Ground) -> None:
    ground.check("label-studio", brush_maps(ground, read_brush))


def test_label_studios_converter_reads_the_brushes(ground: Ground) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="no label-studio-sdk")
    ground.check("label-studio", brush_maps(ground, brush.decode_rle))


def cvat_images(ground: Ground) -> Any:
    for split in SPLITS:
        root = ET.parse(ground.made("cvat") / f"{split}.xml").getroot()
        assert [entry.text for entry in root.iter("name")] == [split, *NAMES]
        yield from root.iter("image")


def test_cvat_masks_are_the_same(ground: Ground) -> None:
    found: Maps = {}
    for image in cvat_images(ground):
        labels_HW = np.full((int(image.get("height")), int(image.get("width"))), -1)
        for mask in image.iter("mask"):
            left, top, width, height = (
                int(mask.get(key)) for key in ("left", "top", "width", "height")
            )
            lengths = [int(word) for word in mask.get("rle").split(", ")]
            inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)
            box_HW = labels_HW[top : top + height, left : left + width]
            box_HW[inside] = NAMES.index(mask.get("label"))
        found[stem(image.get("name"))] = labels_HW
        assert (ground.made("cvat") / "images" / image.get("name")).is_file()
    ground.check("cvat", found)


def test_datumaro_reads_the_cvat_files(ground: Ground) -> None:
    base = pytest.importorskip("datumaro.plugins.data_formats.cvat.base", reason="no datumaro")
    found: Maps = {}
    for split in SPLITS:
        path = ground.made("cvat") / f"{split}.xml"
        for item in base.CvatBase(str(path), subset=None):
            (first, *_) = item.annotations
            labels_HW = np.full(first.image.shape, -1)
            for mask in item.annotations:
                labels_HW[mask.image > 0] = mask.label
            found[stem(item.id)] = labels_HW
    ground.check("cvat", found)


def fiftyone_maps(ground: Ground) -> Maps:
    root = ground.made("fiftyone")
    samples = json.loads((root / "samples.json").read_text())["samples"]
    return {
        stem(sample["filepath"]): png(root / sample["pseudo_labels"]["mask_path"]) - 1
        for sample in samples
    }


def test_fiftyone_masks_count_from_one(ground: Ground) -> None:
    ground.check("fiftyone", fiftyone_maps(ground), ignore=255)  # 0 - 1 in uint8
    info = json.loads((ground.made("fiftyone") / "metadata.json").read_text())["info"]
    assert info["mask_targets"] == {
        "pseudo_labels": {str(index + 1): name for index, name in enumerate(NAMES)}
    }


def test_fiftyones_importer_reads_the_samples(ground: Ground) -> None:
    importers = pytest.importorskip("fiftyone.utils.data.importers", reason="no fiftyone")
    importer = importers.FiftyOneDatasetImporter(str(ground.made("fiftyone")))
    found: Maps = {}
    # Its own way to a directory that is no dump of a database; needs no MongoDB.
    with importers._handle_legacy_formats(importer) as samples:
        for sample in samples:
            mask_HW = sample.pseudo_labels.get_mask().astype(int)
            assert png(Path(sample.filepath)).shape[:2] == mask_HW.shape
            assert sample.tags[0] in SPLITS
            found[stem(sample.filepath)] = mask_HW - 1
    ground.check("fiftyone", found)


def test_turned_photos_are_written_upright(ground: Ground) -> None:
    root = ground.made("coco-instances")
    (turned,) = root.glob("images/*/turned-*")
    (source,) = (ground.folder / "photos").rglob("turned.jpg")
    with Image.open(source) as stored, Image.open(turned) as upright:
        assert upright.size == stored.size[::-1] and upright.getexif().get(0x0112, 1) == 1
        expected = np.rot90(np.asarray(stored.convert("RGB")), k=-1)  # orientation 6
        np.testing.assert_array_equal(np.asarray(upright), expected)


def test_other_images_are_the_same_bytes(ground: Ground) -> None:
    for entry in ground.index("coco-instances").values():
        assert re.fullmatch(r"[A-Za-z0-9_-]+-[0-9a-f]{12}", entry["name"])
        if "turned" not in entry["uri"]:
            source = Path(entry["uri"].removeprefix("file://"))
            copied = ground.made("coco-instances") / entry["file_name"]
            assert copied.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    "mask, rings",
    [
        (draw("..", ".."), 0),
        (draw("#"), 1),
        (draw(".#", "#."), 2),
        (draw("###", "#.#", "###"), 1),
        (draw("#####", "#.#.#", "##.##", "#.#.#", "#####"), 1),
        (draw("####", "#..#", "#.##", "####"), 1),
    ],
    ids=["empty", "one pixel", "diagonal", "hole", "holes that touch", "bent hole"],
)
def test_polygons_hold_exactly_their_mask(mask: NDArray[np.bool_], rings: int) -> None:
    assert len(check_polygons(mask)) == rings


@pytest.mark.parametrize("seed", range(8))
def test_polygons_of_any_mask_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for share in (0.3, 0.6, 0.9):
        mask = rng.random(rng.integers(1, 24, 2)) < share
        assert len(check_polygons(mask)) == ndimage.label(mask)[1]
    blots = ragged_map(rng, (60, 45)) == 1
    assert len(check_polygons(blots)) == ndimage.label(blots)[1]


def check_polygons(mask: NDArray[np.bool_]) -> list[Any]:
    height, width = mask.shape
    rings = trace(mask, (0, 0, width, height))
    painted = np.zeros_like(mask)
    for ring in rings:
        alone = filled(ring.centres_N2, mask.shape)
        assert not (painted & alone).any()
        painted |= alone
        outline = [ring.corners_N2.ravel().astype(float).tolist()]
        by_coco = coco_mask.decode(coco_mask.frPyObjects(outline, height, width))[..., 0]
        np.testing.assert_array_equal(by_coco, alone)
    np.testing.assert_array_equal(painted, mask)
    return rings


@pytest.mark.parametrize(
    "mask, runs",
    [(draw("#.", "##"), [0, 1, 1, 2]), (draw(".#", ".."), [1, 1, 2]), (draw(".."), [2])],
    ids=["starts inside", "starts outside", "empty"],
)
def test_cvat_runs_go_along_the_rows(mask: NDArray[np.bool_], runs: list[int]) -> None:
    assert row_runs(mask) == runs


def test_long_runs_of_a_brush_are_cut(ground: Ground) -> None:
    mask = np.zeros((300, 301), bool)
    mask[150:, :] = True
    values = read_brush(brush_rle(mask)).reshape(300, 301, 4)
    np.testing.assert_array_equal(values[..., 0] > 0, mask)
    assert len(brush_rle(mask)) < 40


Scores = dict[str, dict[int, float]]


def coco_scores(root: Path) -> Scores:
    found: Scores = {}
    for path in (root / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        ids = {image["id"]: image["image_id"] for image in content["images"]}
        for entry in content["annotations"]:
            for one in entry.get("segments_info", [entry]):
                assert one["iscrowd"] == 0
                scores = found.setdefault(ids[entry["image_id"]], {})
                scores[one["category_id"] - 1] = one["score"]
    return found


def tar_scores(root: Path) -> Scores:
    found: Scores = {}
    for path in root.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in (name for name in tar.getnames() if name.endswith(".json")):
                facts = json.loads(tar.extractfile(member).read())
                found[facts["image_id"]] = {
                    one["class_index"]: one["score"] for one in facts["segments"]
                }
    return found


def parquet_scores(root: Path) -> Scores:
    return {
        row["image_id"]: dict(zip(row["classes"], row["scores"], strict=True))
        for path in root.glob("data/*.parquet")
        for row in pd.read_parquet(path).to_dict("records")
    }


def task_scores(root: Path) -> Scores:
    return {
        task["data"]["image_id"]: {
            NAMES.index(one["value"]["brushlabels"][0]): one["score"]
            for one in task["predictions"][0]["result"]
        }
        for path in root.glob("tasks/*.json")
        for task in json.loads(path.read_text())
    }


@pytest.mark.parametrize(
    "name, scores_in",
    [
        ("coco-instances", coco_scores),
        ("coco-panoptic", coco_scores),
        ("webdataset", tar_scores),
        ("hugging-face", parquet_scores),
        ("label-studio", task_scores),
    ],
)
def test_every_segment_has_its_score(ground: Ground, name: str, scores_in: Any) -> None:
    rows = [row for row in rows_of(ground.dataset) if row["status"] == "labelled"]
    found = scores_in(ground.made(name))
    assert set(found) == {row["image_id"] for row in rows}
    for row in rows:
        scores = {one["class_index"]: one["score"] for one in row["segments"]}
        assert found[row["image_id"]] == pytest.approx(scores) and len(set(scores.values())) == 5


def test_the_score_of_a_task_is_the_mean_over_its_pixels(ground: Ground) -> None:
    rows = {row["image_id"]: row for row in rows_of(ground.dataset)}
    for path in ground.made("label-studio").glob("tasks/*.json"):
        for task in json.loads(path.read_text()):
            segments = rows[task["data"]["image_id"]]["segments"]
            areas = [one["area"] for one in segments]
            mean = np.average([one["score"] for one in segments], weights=areas)
            assert task["predictions"][0]["score"] == pytest.approx(mean)


def test_panoptic_segments_are_of_their_image_and_lie_in_their_box(ground: Ground) -> None:
    for split in SPLITS:
        content, folder = panoptic(ground, split)
        images = {image["id"]: stem(image["file_name"]) for image in content["images"]}
        for annotation in content["annotations"]:
            assert images.pop(annotation["image_id"]) == stem(annotation["file_name"])
            ids_HW = png(folder / annotation["file_name"]).astype(np.int64) @ (1, 256, 256**2)
            for one in annotation["segments_info"]:
                rle = coco_mask.encode(np.asfortranarray(ids_HW == one["id"], np.uint8))
                assert one["bbox"] == coco_mask.toBbox(rle).tolist()
        assert not images


def test_classes_beyond_a_byte_are_told_apart(tmp_path: Path) -> None:
    classes = tuple(f"class {number}" for number in range(300))
    export = Export(str(tmp_path), "labels", 1, "f", classes, 1, has_images=False)
    assert export.ignore == 65535
    segments = tuple(
        ExportSegment(index, 0.5, 1, (x, 0, x + 1, 1), encode_mask(np.arange(4)[None] == x))
        for x, index in enumerate((0, 255, 299))
    )
    image = ExportImage(0, "id", "a.png", (1, 4), "a", "a.png", TRAIN, segments, None)
    for name in ("coco-panoptic", "semantic-png", "webdataset"):
        find_format(name).write(Shard(export, 0), [image])
    rgb = png(tmp_path / "annotations" / "panoptic_train" / "a.png").astype(np.int64)
    assert (rgb @ (1, 256, 256**2)).tolist() == [[1, 256, 300, 0]]
    assert png(tmp_path / "masks" / TRAIN / "a.png").tolist() == [[0, 255, 299, 65535]]
    with tarfile.open(tmp_path / "train-00000-of-00001.tar") as tar:
        assert png(tar.extractfile("a.seg.png").read()).tolist() == [[0, 255, 299, 65535]]


def test_what_the_maps_of_a_tar_and_of_a_parquet_file_mean_is_beside_them(ground: Ground) -> None:
    facts = json.loads((ground.made("webdataset") / "classes.json").read_text())
    assert facts == {"classes": list(NAMES), "ignore": 255}
    names = json.loads((ground.made("hugging-face") / "id2label.json").read_text())
    assert names == {str(index): name for index, name in enumerate(NAMES)}


def test_yolo_vertices_of_a_very_wide_image_are_exact(tmp_path: Path) -> None:
    width, x0, x1 = 60_000, 43_211, 43_219
    counts = encode_mask((np.arange(width)[None] >= x0) & (np.arange(width)[None] < x1))
    segment = ExportSegment(0, 0.5, x1 - x0, (x0, 0, x1, 1), counts)
    image = ExportImage(0, "id", "a.png", (1, width), "a", "a.png", TRAIN, (segment,), None)
    export = Export(str(tmp_path), "labels", 1, "f", ("sky",), 1, has_images=False)
    find_format("yolo-seg").write(Shard(export, 0), [image])
    (line,) = (tmp_path / "labels" / TRAIN / "a.txt").read_text().splitlines()
    shares_N2 = np.array(line.split()[1:], float).reshape(-1, 2)
    assert {int(x) for x in shares_N2[:, 0] * width} == {x0, x1 - 1}


def test_cvat_tells_how_many_images_a_task_has(ground: Ground) -> None:
    for split in SPLITS:
        root = ET.parse(ground.made("cvat") / f"{split}.xml").getroot()
        (size,) = root.iter("size")
        assert size.text == str(len(root.findall("image")))


def test_names_of_local_files_are_quoted_for_label_studio() -> None:
    assert local_file("a b/?é.png") == "/data/local-files/?d=a%20b/%3F%C3%A9.png"
