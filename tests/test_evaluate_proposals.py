"""Kept proposals against truths: what they find, the oracle's bound, and whose rows count."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.annotate import annotate
from jobs.evaluate import evaluate
from pipeline.dataset import publish
from pipeline.evaluation.recall import BUDGETS
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.parts import write_part
from pipeline.segments import encode_segments
from pipeline.synthetic import make_scene
from schemas.annotate_config import AnnotateConfig
from schemas.annotation import ANNOTATED_AND_EMBEDDED, LABELLED, image_id
from schemas.errors import SettingsError
from schemas.evaluate_config import EvaluateConfig
from schemas.manifest import Counts
from schemas.vocabulary import Vocabulary
from tests.helpers import draw_classes
from tests.test_manifest import MANIFEST

NAMES = ("sky", "cat")
ALL = len(BUDGETS)


def blocks(*rows, side=8):
    return np.kron(draw_classes(*rows), np.ones((side, side), dtype=int)).astype(np.int32)


TRUTH = blocks("011", "011")
LEFT, MIDDLE, RIGHT = (blocks(row, row) == 1 for row in ("100", "010", "001"))


def row(name, masks, void_logits=None, **changes):
    """Return a finished row with masks on a grid as fine as the image."""
    labels = np.zeros(TRUTH.shape, dtype=int)
    height, width = TRUTH.shape
    logits = np.where(np.array(masks).reshape(-1, *TRUTH.shape), 8, -8)
    return {
        "image_id": image_id(name), "uri": f"file:///photos/{name}.jpg", "etag": "today",
        "fingerprint": "f", "run_id": "run", "height": height, "width": width, "status": LABELLED,
        "annotator": "model",
        "segments": encode_segments(labels, np.full(TRUTH.shape, 0.5, np.float32), NAMES, 0.0),
        "image_height": height, "image_width": width, "mask_height": height, "mask_width": width,
        "mask_logits": logits.astype(np.float16).tobytes(), "n_proposals": len(masks),
        "void_logits": None if void_logits is None else np.float32(void_logits).tobytes(),
        "clip_embeds": b"", "proposal_fingerprint": "mine", "embedding_fingerprint": "any",
        **changes,
    }  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    """Publish rows, each list a file of its own, and the truth of images; return a function."""

    def build(*files, images=None, **models):
        output = str(tmp_path / f"labels{len(list(tmp_path.iterdir()))}")
        parts = [
            write_part(output, "run", pa.Table.from_pylist(rows, schema=ANNOTATED_AND_EMBEDDED))
            for rows in files
        ]
        shown = parts if images is None else [parts[index] for index in images]
        counts = Counts(inventory=1, labelled=1, quarantined=0, reasons={})
        changes = {
            "images": tuple(part.images for part in shown),
            "embeddings": tuple(part.embeddings for part in parts if part.embeddings),
            "vocabulary": Vocabulary.of(NAMES), "counts": counts, "version": 1,
            "config": {"mask_precision": "float16"},
            "models": {"divisor": 8, "proposal_fingerprint": "mine", **models},
        }  # fmt: skip
        publish(output, MANIFEST.model_copy(update=changes))
        return output

    return build


@pytest.fixture
def truth(tmp_path):
    folder = tmp_path / "truth"
    folder.mkdir()
    for name in ("one", "two"):
        Image.fromarray(TRUTH.astype(np.uint8)).save(folder / f"{name}.png")
    return str(folder)


def measure(dataset, truth, **settings):
    config = EvaluateConfig(dataset=dataset, truth=truth, proposals=True, **settings)
    return evaluate(config).proposals


def test_recall_takes_proposals_in_the_order_of_certainty(dataset, truth):
    # The second is the most certain: half of the right segment. Then the left one as it is, and
    # last the whole of the right one.
    masks = [LEFT, MIDDLE, MIDDLE | RIGHT]
    found = measure(dataset([row("one", masks, [0.5, -1.0, 2.0])]), truth)
    assert (found.recall.images, found.recall.proposals, found.recall.segments) == (1, 3, 2)
    assert found.recall.mean_best_iou()[[0, 1, 2, ALL]].tolist() == [0.25, 0.75, 1, 1]
    assert found.recall.recall()[[0, 1], 0].tolist() == [0.5, 1]
    assert found.recall.average_recall()[[1, ALL]].tolist() == pytest.approx([(1 + 0.1) / 2, 1])


def test_without_certainty_the_order_is_the_proposers(dataset, truth):
    found = measure(dataset([row("one", [LEFT, MIDDLE])]), truth)
    assert found.recall.mean_best_iou()[[0, 1]].tolist() == [0.5, 0.75]


def test_outlines_are_of_the_first_proposals(dataset, truth):
    # One line at x = 7 is true, and 14 rows of it are off by more than 0.75 % of a diagonal of 29.
    found = measure(dataset([row("one", [LEFT, RIGHT])]), truth).outlines
    assert (found.precision()[[0, 1, ALL]]).tolist() == [1, 0.5, 0.5]
    assert (found.recall()[[0, 1, ALL]]).tolist() == [1, 1, 1]


def test_the_oracle_labels_what_proposals_leave_possible(dataset, truth):
    found = measure(dataset([row("one", [LEFT | MIDDLE, RIGHT])]), truth)
    # Left and middle have one label: IoU 1/2 with sky, 1/3 with cat.
    assert found.oracle.iou().tolist() == [pytest.approx(1 / 2), pytest.approx(1 / 2)]
    assert found.oracle_means["detectron2"].miou == pytest.approx(1 / 2)
    whole = measure(dataset([row("one", [LEFT, MIDDLE | RIGHT])]), truth)
    assert whole.oracle_means["reference"].miou == 1


def test_no_proposal_is_no_label(dataset, truth):
    found = measure(dataset([row("one", [])]), truth)
    assert found.recall.average_recall()[ALL] == 0
    assert found.oracle.predicted.sum() == 0 and found.outlines.recall()[ALL] == 0


def test_images_add_up_over_files_and_processes(dataset, truth):
    files = [[row("one", [LEFT, MIDDLE])], [row("two", [RIGHT])]]
    labels = dataset(*files)
    found = measure(labels, truth, workers=1)
    assert (found.recall.images, found.recall.proposals, found.recall.segments) == (2, 3, 4)
    assert found.recall.mean_best_iou()[ALL] == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    together = measure(labels, truth, workers=2)
    np.testing.assert_array_equal(together.recall.hits_NT, found.recall.hits_NT)
    np.testing.assert_array_equal(together.oracle.counts, found.oracle.counts)


def test_rows_of_before_count_nowhere(dataset, truth):
    again = [row("one", [LEFT, MIDDLE])]  # a run that was cut short had this already
    newest = [row("one", [LEFT, MIDDLE], run_id="next")]
    yesterday = [row("one", [LEFT], etag="yesterday")]
    of_another = [row("one", [RIGHT], proposal_fingerprint="other")]
    found = measure(dataset(again, newest, yesterday, of_another, images=[1]), truth)
    assert (found.recall.images, found.recall.proposals) == (1, 2)


def test_truths_without_classes_have_no_oracle(dataset, truth):
    labels = dataset([row("one", [LEFT, MIDDLE])])
    found = measure(labels, truth, truth_format="segments")
    # The id 0 is of no segment there.
    assert found.recall.segments == 1 and found.oracle_means is None
    assert found.recall.mean_best_iou()[ALL] == 0.5


@pytest.mark.parametrize(
    "change, words",
    [
        ({"status": "quarantined"}, r"keeps none; annotate with --keep-embeddings exact"),
        ({"pixel_embeds": b"x"}, r"compares pixels and makes none"),
        ({"proposal_fingerprint": "other"}, r"no image of .* with kept proposals has a truth"),
        ({"uri": "file:///photos/lonely.jpg"}, r"no image of .* with kept proposals has a truth"),
    ],
    ids=["nothing kept", "per pixel", "of another proposer", "no truth"],
)
def test_proposals_that_are_not_there_are_refused(dataset, truth, change, words):
    error = {"stage": "decode", "code": "corrupt", "message": "why"}
    error = error if "status" in change else None
    labels = dataset([row("one", [LEFT], error=error, **change)])
    with pytest.raises(SettingsError, match=words):
        measure(labels, truth)


def test_a_manifest_that_does_not_tell_the_padding_is_refused(dataset, truth):
    labels = dataset([row("one", [LEFT])])
    path = f"{labels}/_manifest/v000001.json"
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace('"divisor"', '"other"'))
    with pytest.raises(SettingsError, match="does not tell how their masks were padded"):
        measure(labels, truth)


def test_a_truth_of_another_size_is_named(dataset, truth):
    Image.fromarray(TRUTH[:8].astype(np.uint8)).save(f"{truth}/one.png")
    with pytest.raises(SettingsError, match=r"one\.png: labels are \(16, 24\), truth is \(8, 24\)"):
        measure(dataset([row("one", [LEFT])]), truth)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_oracle_is_that_of_annotating_with_the_truth(tmp_path):
    scenes, truth = tmp_path / "scenes", tmp_path / "truth"
    for folder in (scenes, truth):
        folder.mkdir()
    for index in range(4):
        scene = make_scene(5_300, index)
        Image.fromarray(scene.image_HW3).save(scenes / f"{index}.png")
        Image.fromarray(scene.label_map_HW).save(truth / f"{index}.png")
    common = {"source": str(scenes), "vocabulary": EMBEDDED_VOCABULARY}
    kept, oracle = str(tmp_path / "kept"), str(tmp_path / "oracle")
    annotate(AnnotateConfig(**common, output=kept, keep_embeddings="exact"))
    annotate(AnnotateConfig(**common, output=oracle, oracle_truth=str(truth)))
    found = measure(kept, str(truth))
    expected = evaluate(EvaluateConfig(dataset=oracle, truth=str(truth)))
    np.testing.assert_array_equal(found.oracle.counts, expected.confusion.counts)
    assert found.oracle_means == expected.by_protocol
    assert found.recall.images == 4 and found.recall.average_recall()[ALL] > 0.3
