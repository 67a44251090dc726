"""Approximate classifiers and pruning as settings: what is refused, what fingerprints hold."""

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from jobs.annotate import annotate
from jobs.annotation_plan import AnnotationPlan
from pipeline.dataset import read_manifest
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.models.maskformer import BackboneConfig
from pipeline.models.per_pixel import PerPixel, PerPixelConfig
from pipeline.synthetic import make_scene
from schemas.annotate_config import AnnotateConfig
from schemas.errors import ModelError
from tests.dataset_checks import check_rows, rows_of

REQUIRED = {"source": "photos", "vocabulary": EMBEDDED_VOCABULARY, "output": "labels"}


def plan(**settings):
    return AnnotationPlan.of(AnnotateConfig(**REQUIRED, **settings))


@pytest.mark.parametrize(
    "setting, value",
    [
        ("image_side", 8),
        ("one_pass_layers", 0),
        ("prune_min_area", 0),
        ("prune_min_area", 1),
        ("prune_min_stability", 1.1),
        ("prune_min_won", -0.1),
        ("prune_iou", 0),
        ("prune_iou", 1.01),
    ],
)
def test_a_wrong_value_is_refused_by_name(setting, value):
    with pytest.raises(ValidationError, match=setting):
        AnnotateConfig(**REQUIRED, **{setting: value})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"classifier": "two-pass"}, "no classifier 'two-pass'; there are crops, one-pass, pool"),
        (
            {"classifier": "one-pass", "mask_fill": "zero"},
            "mask_fill is zero, but classifier 'one-pass' has no use for it; it is of crops",
        ),
        ({"classifier": "one-pass", "crop_side": 64}, "crop_side is 64, but classifier 'one-pass'"),
        ({"classifier": "one-pass", "prune_iou": 0.9}, "prune_iou is 0.9, but .* is of crops"),
        ({"image_side": 64}, "image_side is 64, .*'crops' .* is of one-pass and pooling"),
        ({"one_pass_layers": 2}, "one_pass_layers is 2, .* it is of one-pass"),
        ({"classifier": "one-pass", "one_pass_layers": 5}, "has 4 layers; it must be 1 to 4"),
        ({"classifier": "one-pass", "image_side": 50}, "squares of 8: 48 or 56 would do"),
        ({"classifier": "pooling"}, "a ViT as its image tower; classifier pooling needs"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_model(settings, message):
    with pytest.raises(ModelError, match=message):
        plan(**settings)


def test_pruning_needs_proposals(tmp_path):
    backbone = BackboneConfig(name="resnet18", options={"channels": [8, 8, 8, 8]})
    config = PerPixelConfig(backbone=backbone, fpn_channels=32, mask_channels=8, embedding_dim=128)
    PerPixel(config).save(tmp_path)
    for setting in ("prune_min_area", "prune_iou"):
        with pytest.raises(ModelError, match=f"{setting} is of proposals, but proposer 'per-pixel"):
            plan(proposer="per-pixel", proposer_weights=str(tmp_path), **{setting: 0.5})


def changed(**settings):
    """Which fingerprints settings change."""
    default, other = plan().fingerprints, plan(**settings).fingerprints
    names = ("decode", "proposal", "embedding", "label")
    return [name for name in names if getattr(default, name) != getattr(other, name)]


def test_all_that_changes_labels_changes_fingerprints():
    from_embedding, from_proposal = ["embedding", "label"], ["proposal", "embedding", "label"]
    assert changed(classifier="one-pass") == from_embedding
    assert changed(prune_iou=0.9) == from_embedding
    for name in ("prune_min_area", "prune_min_stability", "prune_min_won"):
        assert changed(**{name: 0.1}) == from_proposal
    one_pass = [
        plan(classifier="one-pass", **settings).fingerprints.embedding
        for settings in (
            {}, {"image_side": 96}, {"one_pass_layers": 2}, {"mask_threshold": 0.4},
            {"clip_precision": "bf16"},
        )
    ]  # fmt: skip
    assert len(set(one_pass)) == 5
    # The threshold decides proposals where they are pruned by it, and only there.
    pruned = [plan(prune_min_area=0.1, mask_threshold=at).fingerprints for at in (0.4, 0.5)]
    assert pruned[0].proposal != pruned[1].proposal
    assert "proposal" not in changed(mask_threshold=0.4)


def test_an_architecture_changes_what_a_file_of_weights_computes(tmp_path):
    for name in ("here", "moved"):
        save_file({"logit_scale": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    here, moved = (str(tmp_path / f"{name}.safetensors") for name in ("here", "moved"))
    first, *others = (
        plan(proposer="felzenszwalb", clip=clip, clip_weights=weights).fingerprints
        for clip, weights in (
            ("ViT-B-32", here), ("ViT-B-32-quickgelu", here), ("RN50", here), ("ViT-B-32", moved),
        )
    )  # fmt: skip
    for other in others[:2]:
        assert first.embedding != other.embedding
        assert first.label != other.label
    assert first == others[2]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_run_with_one_pass_and_pruning(tmp_path):
    for index in range(2):
        picture = Image.fromarray(make_scene(5_410, index).image_HW3)
        (tmp_path / "scenes").mkdir(exist_ok=True)
        picture.resize((64, 48)).save(tmp_path / "scenes" / f"{index}.png")
    settings = {
        **REQUIRED, "source": str(tmp_path / "scenes"), "output": str(tmp_path / "labels"),
        "classifier": "one-pass", "prune_min_area": 0.01,
    }  # fmt: skip
    result = annotate(AnnotateConfig(**settings))
    assert (result.counts.labelled, result.counts.quarantined) == (2, 0)
    rows = rows_of(settings["output"])
    check_rows(rows, whole=True)
    assert all(0 < row["n_proposals"] < 24 for row in rows)
    models = read_manifest(settings["output"]).models
    assert (models["classifier"], models["prune_min_area"]) == ("one-pass", 0.01)
    assert "mask_fill" not in models
    again = annotate(AnnotateConfig(**settings))
    assert again.changes.done == 0
    other = annotate(AnnotateConfig(**settings | {"one_pass_layers": 1}))
    assert other.changes.done == 2
