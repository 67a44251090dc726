"""Learning rates, and which parameter is trained how."""

import math

import pytest
import torch

from pipeline.models.maskformer import BackboneConfig, MaskFormer, MaskFormerConfig
from pipeline.training.schedule import PaperOptimiser, poly, warm_cosine

TINY = MaskFormerConfig(
    backbone=BackboneConfig(
        name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]}
    ),
    fpn_channels=32,
    mask_channels=32,
    hidden_channels=32,
    heads=4,
    feedforward_channels=64,
    decoder_layers=1,
    queries=5,
    query_head_channels=32,
    embedding_dim=16,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MaskFormer(TINY).train()


@pytest.mark.parametrize(
    "step, factor",
    [
        (0, 1.0),
        (1, 0.9999849999874999),
        (1000, 0.984987422935722),
        (30000, 0.5358867312681466),
        (59999, 5.007994862237932e-05),
        (60000, 0.0),
    ],
)
def test_the_rate_falls_as_in_the_reference(step, factor):
    assert poly(step, 60000) == pytest.approx(factor, rel=1e-12)


def test_the_rate_can_be_kept_from_falling_to_zero():
    assert poly(9, 10, power=1.0) == pytest.approx(0.1)
    assert poly(9, 10, power=1.0, floor=0.2) == 0.2
    assert poly(1, 10, power=1.0, floor=0.2) == 0.9


def test_a_warm_cosine_rises_and_falls():
    assert [warm_cosine(step, 10, 2) for step in (0, 1, 2, 6, 10)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.5, 0.0]
    )


def test_norms_and_embeddings_do_not_decay_and_the_backbone_is_slow(model):
    model.backbone.requires_grad_(True)
    settings = PaperOptimiser(learning_rate=1.0, backbone_factor=0.5, weight_decay=0.25)
    names = {id(value): name for name, value in model.named_parameters()}
    found = {
        names[id(value)]: (group["lr"], group["weight_decay"])
        for group in settings.build(model).param_groups
        for value in group["params"]
    }
    assert found.keys() == set(names.values())
    for name, expected in {
        "backbone.conv1.weight": (0.5, 0.25),
        "backbone.bn1.weight": (0.5, 0.0),
        "queries.weight": (1.0, 0.0),
        "decoder_norm.bias": (1.0, 0.0),
        "decoder_layers.0.self_attn_layer_norm.weight": (1.0, 0.0),
        "pixel_decoder.fpn.stem.1.weight": (1.0, 0.0),
        "pixel_decoder.fpn.stem.0.weight": (1.0, 0.25),
        "input_projection.bias": (1.0, 0.25),
        "no_object": (1.0, 0.25),
    }.items():
        assert found[name] == expected, name


def test_positions_of_a_swin_do_not_decay():
    options = {
        "embed_dim": 16,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 2, 2),
        "use_absolute_embeddings": True,
    }
    backbone = BackboneConfig(kind="swin", name="swin-tiny", options=options)
    model = MaskFormer(TINY.model_copy(update={"backbone": backbone}))
    names = {id(value): name for name, value in model.named_parameters()}
    undecayed = {
        names[id(value)].rpartition(".")[2]
        for group in PaperOptimiser().groups(model)
        for value in group["params"]
        if not group["weight_decay"]
    }
    assert undecayed == {"weight", "bias", "relative_position_bias_table", "position_embeddings"}


def test_what_is_frozen_is_in_no_group(model):
    model.backbone.requires_grad_(False)
    frozen = {id(value) for value in model.backbone.parameters()}
    groups = PaperOptimiser().groups(model)
    assert len(groups) == 2
    assert not frozen & {id(value) for group in groups for value in group["params"]}


def test_all_gradients_are_clipped_as_one(model):
    settings = PaperOptimiser(max_norm=0.01)
    optimizer = settings.build(model)
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    count = sum(value.numel() for value in model.parameters())
    before = model.no_object.detach().clone()
    assert settings.step(optimizer) == pytest.approx(count**0.5)
    norm = sum(value.grad.pow(2).sum() for value in model.parameters()) ** 0.5
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    assert not torch.equal(model.no_object, before)


def test_gradients_that_are_no_numbers_update_nothing(model):
    optimizer = PaperOptimiser().build(model)
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    model.no_object.grad[0] = math.inf
    before = [value.detach().clone() for value in model.parameters()]
    assert not math.isfinite(PaperOptimiser().step(optimizer))
    assert all(map(torch.equal, model.parameters(), before))
