"""Explaining pixels: what comes out of kept embeddings equals what the stages did."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import annotation_flows as flows
from jobs.annotation_plan import AnnotationPlan
from jobs.cli import main
from jobs.explain import explain
from pipeline.dataset import publish, read_manifest, read_rows
from pipeline.explanation.pixel import explain_pixel
from pipeline.files import delete_files
from pipeline.fusion import LabelMap, label_map
from pipeline.masks import pack_logits
from pipeline.models.crops import CropSettings, crop_regions
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.parts import read_row_group, write_part
from pipeline.pixels import PixelScorer, pixel_score_tiles
from pipeline.segments import decode_label_map
from pipeline.stages.classify import Classify
from pipeline.stages.fetch import FetchDecode, source_settings
from pipeline.stages.propose import Propose
from pipeline.stages.soft_masks import soft_masks
from pipeline.synthetic import make_scene
from pipeline.text_vectors import Texts, texts_path, write_texts
from schemas.annotate_config import AnnotateConfig
from schemas.annotation import LABELLED, image_id
from schemas.errors import SettingsError
from schemas.explain_config import ExplainConfig
from schemas.manifest import Changes, Counts, Manifest
from schemas.vocabulary import Vocabulary
from tests.helpers import take_inventory

SEED = 5_300
SIZE = (80, 112)  # (width, height): neither square nor a multiple of the grid


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two scenes and a broken file, labelled by the embedded models, with what they decided by."""
    folder = tmp_path_factory.mktemp("explain")
    photos = folder / "photos"
    (photos / "sub").mkdir(parents=True)
    for index, name in enumerate(("one.png", "two.png", "sub/one.png")):
        Image.fromarray(make_scene(SEED, index).image_HW3).resize(SIZE).save(photos / name)
    (photos / "broken.png").write_bytes(b"not pixels")
    output = str(folder / "labels")
    config = AnnotateConfig(
        source=str(photos), vocabulary=EMBEDDED_VOCABULARY, output=output, keep_embeddings="exact",
        ensemble_weight=0.6, min_score=0.3, mask_threshold=0.4,
    )  # fmt: skip
    plan = AnnotationPlan.of(config)
    texts = flows.encode_vocabulary(
        plan.clip, plan.vocabulary, (plan.query_prompts, plan.region_prompts)
    )
    decoded = FetchDecode(*plan.edges, source_settings(config))(
        take_inventory(str(photos), ("png",)).images
    )
    label = flows.label_stage(plan, texts, "run-1")
    proposed = Propose("maskformer", None, plan.proposer.divisor, "float16")(decoded)
    part = write_part(output, "run-1", Classify(flows._embed(plan), label, True)(proposed))
    write_texts(output, plan.fingerprints.label, texts)
    models = {
        "proposal_fingerprint": plan.fingerprints.proposal,
        "embedding_fingerprint": plan.fingerprints.embedding,
        "divisor": plan.proposer.divisor,
        **plan.deciding,
    }
    publish(output, manifest_of(part, plan, models))
    for path in photos.rglob("*.png"):
        path.unlink()  # no image is needed to explain it
    return output, label


def manifest_of(part, plan, models):
    return Manifest(
        version=1, created="2026-01-01T00:00:00Z", run_id="run-1", lock=1, source="photos",
        fingerprint=plan.fingerprints.label, vocabulary=plan.vocabulary,
        counts=Counts(inventory=4, labelled=3, quarantined=1, reasons=part.images.reasons),
        changes=Changes(kept=0, done=4, from_embeddings=0, removed=0),
        images=(part.images,), embeddings=(part.embeddings,), config={}, models=models, software={},
    )  # fmt: skip


def why(dataset, image="two.png", at=(40, 50), **settings):
    return explain(ExplainConfig(dataset=dataset, image=image, at=at, **settings))


def kept_row(dataset, name="two.png"):
    manifest = read_manifest(dataset)
    rows = read_row_group(dataset, manifest.embeddings[0].path, 0).to_pylist()
    return next(row for row in rows if row["uri"].endswith(f"photos/{name}"))


def written_row(dataset, name="two.png"):
    tables = read_rows(dataset, read_manifest(dataset))
    rows = [row for table in tables for row in table.to_pylist()]
    return next(row for row in rows if row["uri"].endswith(f"photos/{name}"))


@pytest.mark.parametrize("name", ["photos/one.png", "two.png"])
def test_labels_and_scores_are_those_of_the_stages(made, name):
    dataset, label = made
    file = name.removeprefix("photos/")
    row, written = kept_row(dataset, file), written_row(dataset, file)
    masks_QHW = soft_masks(row, label.precision, label.divisor)
    with torch.inference_mode():
        labels = label_map(label._head_scores(row).fused_QK, masks_QHW, (SIZE[1], SIZE[0]))
    label_map_HW = decode_label_map(written["segments"], (SIZE[1], SIZE[0]))
    random = np.random.default_rng(0)
    corners = [(0, 0), (SIZE[0] - 1, SIZE[1] - 1), (SIZE[0] - 1, 0)]
    seen = set()
    for column, line in [*corners, *random.integers(0, SIZE, (25, 2)).tolist()]:
        found = why(dataset, name, (column, line))
        assert found.terms.score == pytest.approx(float(labels.scores_HW[line, column]), abs=1e-5)
        winner = label.names[int(labels.classes_HW[line, column])]
        assert found.terms.winner == winner
        if label_map_HW[line, column] < 0:
            assert found.segment is None and found.is_below_min_score
        else:
            assert found.segment.label == winner and not found.is_below_min_score
            assert 0 < found.segment.margin <= 1 and 0 <= found.segment.stability <= 1
            assert 0 < found.segment.disagreement <= 1  # both heads of the embedded models
            x0, y0, x1, y1 = found.segment.box
            assert x0 <= column < x1 and y0 <= line < y1
        seen.add(found.segment and found.segment.label)
    assert len(seen) > 1 and (name == "two.png" or len(seen) > 2)  # also pixels without a label


def test_terms_multiply_to_the_score(made):
    dataset, _ = made
    found = why(dataset, top=1000)
    terms = found.terms
    assert sum(one.share for one in terms.proposals) == pytest.approx(1, abs=1e-5)
    added = sum(one.fused * one.mask_prob for one in terms.proposals)
    assert added / terms.evidence == pytest.approx(terms.score, rel=1e-5)
    winner = terms.classes[0]
    assert (winner.name, winner.score) == (terms.winner, terms.score)
    assert {round(one.query_exponent, 6) for one in terms.classes} == {0.6, 0.4}
    assert winner.is_seen == (winner.query_exponent == 0.6)
    for one in terms.proposals:
        product = one.query_prob**winner.query_exponent
        product *= one.clip_prob ** (1 - winner.query_exponent)
        assert one.fused == pytest.approx(product, rel=1e-4)
        assert 0 <= one.void_prob <= 1
    assert [one.score for one in terms.classes] == sorted(
        (one.score for one in terms.classes), reverse=True
    )


def test_boxes_are_those_of_the_crops(made):
    dataset, label = made
    row = kept_row(dataset)
    masks_QHW = soft_masks(row, label.precision, label.divisor)
    image = torch.zeros((3, row["image_height"], row["image_width"]), dtype=torch.uint8)
    settings = CropSettings(mask_threshold=0.4)
    regions = crop_regions(image, masks_QHW, settings, side=32, mean=(0, 0, 0), std=(1, 1, 1))
    expected = dict(
        zip(regions.valid_Q.nonzero()[:, 0].tolist(), regions.boxes_V4.tolist(), strict=True)
    )
    found = {one.proposal: one.box for one in why(dataset, top=1000).terms.proposals}
    assert len(found) == len(masks_QHW)
    assert {at: list(box) for at, box in found.items() if box} == expected


def test_thresholds_weights_and_run_are_told(made):
    dataset, _ = made
    found = why(dataset)
    assert (found.run_id, found.version, found.status) == ("run-1", 1, LABELLED)
    assert found.thresholds["min_score"] == 0.3 and found.thresholds["mask_threshold"] == 0.4
    assert len(found.weights["proposer_weights_sha256"]) == len(
        found.weights["clip_weights_sha256"]
    )
    assert found.unknown is None


@pytest.mark.parametrize("how", ["id", "uri", "path", "end of a path"])
def test_an_image_is_found_by(made, how, tmp_path, monkeypatch):
    dataset, _ = made
    row = written_row(dataset, "sub/one.png")
    path = row["uri"].removeprefix("file://")
    monkeypatch.chdir(path.rpartition("/")[0])
    image = {
        "id": row["image_id"],
        "uri": row["uri"],
        "path": "one.png",
        "end of a path": "sub/one.png",
    }
    assert why(dataset, image[how]).image_id == image_id(row["uri"])


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"image": "one.png"}, "has 2 images 'one.png'; name one uri: file:///"),
        ({"image": "tow.png"}, "has no image 'tow.png'; did you mean 'two.png'"),
        ({"image": "xyz"}, "has no image 'xyz'; it has for instance '"),
        ({"at": (80, 0)}, "at is 80,0; columns of .* go from 0 to 79, rows from 0 to 111"),
        ({"at": (0, 112)}, "at is 0,112"),
        ({"at": (-1, 0)}, "at is -1,0"),
        ({"version": 9}, "version 9"),
    ],
)
def test_what_is_not_there_is_one_clear_error(made, changes, problem):
    with pytest.raises(SettingsError, match=problem):
        why(made[0], **changes)


def test_a_quarantined_image_tells_its_reason(made):
    found = why(made[0], "broken.png", (0, 0))
    assert (found.status, found.error["code"]) == ("quarantined", "not_an_image")
    assert (found.segment, found.terms) == (None, None) and "quarantined" in found.unknown


def test_without_what_was_kept_the_row_alone_is_told(made):
    dataset, _ = made
    first = read_manifest(dataset)
    models = {**first.models, "embedding_fingerprint": "another CLIP"}
    for version, changes in ((2, {"embeddings": ()}), (3, {"models": models})):
        publish(dataset, first.model_copy(update={"version": version, **changes}))
    oracle = {**first.models, "oracle_truth": "masks"}
    publish(dataset, first.model_copy(update={"version": 4, "models": oracle}))
    gone = {"version": 5, "fingerprint": "0" * 64}  # the text vectors of another run
    publish(dataset, first.model_copy(update=gone))
    told = {2: "annotate with --keep-embeddings", 3: "those of this image were not kept",
            4: "comes from a truth", 5: "text vectors of this version were not kept"}  # fmt: skip
    for version, words in told.items():
        found = why(dataset, version=version)
        assert found.terms is None and words in found.unknown
        assert found.segment == why(dataset, version=1).segment is not None
        assert found.thresholds["min_score"] == 0.3
    delete_files(dataset, [f"_manifest/v{version:06d}.json" for version in told])


def test_the_command_prints_it(made, capsys):
    dataset, _ = made
    assert main(["explain", dataset, "--image", "two.png", "--at", "40,50"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["at"] == [40, 50] and told["terms"]["winner"] in err
    assert "query exponent" in err and "crop box" in err
    assert main(["explain", dataset, "--image", "two.png", "--at", "40"]) == 2


def test_pixels_of_a_network_without_proposals(made):
    """Random embeddings on the grid, as the per-pixel baseline has them, against its score map."""
    random = torch.Generator().manual_seed(0)
    embeds_Dhw = torch.randn((8, 10, 14), generator=random)
    names = ("a", "b", "c")
    text_KD = torch.nn.functional.normalize(torch.randn((3, 8), generator=random), dim=1)
    clip_1D = torch.nn.functional.normalize(torch.randn((1, 8), generator=random), dim=1)
    image_size, size = (37, 50), (60, 81)
    row = {
        "height": size[0], "width": size[1], "image_height": 37, "image_width": 50,
        "mask_height": 10, "mask_width": 14, "n_proposals": 0, "valid": None,
        "pixel_embeds": pack_logits(embeds_Dhw, "float32").tobytes(),
        "clip_embeds": clip_1D.numpy().tobytes(), "query_embeds": None,
    }  # fmt: skip
    vocabulary = Vocabulary.model_validate(
        {"classes": [{"name": name, "seen": name != "b"} for name in names]}
    )
    models = {"logit_scale": "model", "mask_precision": "float32", "ensemble_weight": 0.7}
    models |= {"invalid_proposals": "boosted", "classifier": "crops"}
    texts = Texts(text_KD.numpy(), text_KD.numpy(), 5.0)
    clip_1K = (5.0 * clip_1D @ text_KD.T).softmax(dim=1)
    scorer = PixelScorer(text_KD, clip_1K, torch.tensor([True, False, True]), 0.7)
    labels = LabelMap.of(
        pixel_score_tiles(embeds_Dhw, scorer, image_size, size), size, torch.device("cpu")
    )
    for at in [(0, 0), (59, 80), (30, 41), (12, 70)]:
        found = explain_pixel(row, texts, vocabulary, models, at, 3)
        assert found.winner == names[int(labels.classes_HW[at])]
        assert found.score == pytest.approx(float(labels.scores_HW[at]), abs=1e-5)
        assert found.proposals[0].box == (0, 0, 50, 37)
        models_of_another = {**models, "classifier": "one-pass"}
        found = explain_pixel(row, texts, vocabulary, models_of_another, at, 3)
        assert found.proposals[0].box is None  # nothing was cut out


def test_text_vectors_of_kept_versions_outlive_a_vacuum(made):
    from jobs.vacuum import vacuum
    from schemas.upkeep_config import VacuumConfig

    dataset, label = made
    other = "1" * 64
    write_texts(dataset, other, Texts(label.query_text_KD, label.region_text_KD, 1.0))
    found = vacuum(VacuumConfig(dataset=dataset, older_than_hours=0))
    assert texts_path(other) in found.files
    assert texts_path(read_manifest(dataset).fingerprint) not in found.files
    delete_files(dataset, [texts_path(other)])
