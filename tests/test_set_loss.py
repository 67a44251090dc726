"""Matching and losses of sets of masks, against transformers' own and against hand-made numbers."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers.models.maskformer.modeling_maskformer import (
    MaskFormerHungarianMatcher,
    MaskFormerLoss,
)

from pipeline.models.maskformer import LayerOutput
from pipeline.training.set_loss import (
    LossSettings,
    Totals,
    match,
    matching_costs,
    named_losses,
    set_losses,
    total_loss,
)
from pipeline.training.targets import Targets, class_masks
from tests.helpers import draw_classes

LABELS = [torch.tensor([0, 3]), torch.tensor([1]), torch.tensor([4, 2, 0])]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def random_layers(generator, count=2):
    """Three images, six queries, a grid of 10 x 12; embeddings of 8 channels."""
    return [
        LayerOutput(
            3 * torch.randn(3, 6, 10, 12, generator=generator),
            0.1 * normalize(torch.randn(3, 6, 8, generator=generator), dim=-1),
            torch.randn(3, 6, generator=generator),
        )
        for _ in range(count)
    ]


def random_masks(generator, cell):
    """Masks on a grid of 40 x 48, constant on square cells."""
    cells = [torch.randn(len(row), 40 // cell, 48 // cell, generator=generator) for row in LABELS]
    return [torch.kron((values > 0).float(), torch.ones(cell, cell)) for values in cells]


def text_vectors(generator):
    return normalize(torch.randn(5, 8, generator=generator), dim=-1)


# "area" equals the top left sample where a mask is constant on the cells of the matching grid.
@pytest.mark.parametrize("cell, matching_targets", [(1, "nearest"), (4, "nearest"), (4, "area")])
def test_the_losses_equal_those_of_transformers(generator, cell, matching_targets):
    layers, text_KD = random_layers(generator), text_vectors(generator)
    masks = random_masks(generator, cell)
    reference = MaskFormerLoss(5, MaskFormerHungarianMatcher(1.0, 20.0, 1.0), {}, 0.1)
    expected = []
    for layer in layers:
        losses = reference(layer.mask_logits_BQhw, layer.class_logits(text_KD), masks, LABELS)
        names = ("loss_cross_entropy", "loss_mask", "loss_dice")
        expected.append([losses[name].item() for name in names])
    settings = LossSettings(matching_targets=matching_targets)
    actual = set_losses(layers, text_KD, Targets.of(LABELS, masks), settings)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)


def one_query(logit, matching_targets="nearest"):
    """Costs of a mask whose cell is inside at the top left sample and nowhere else."""
    masks = torch.zeros(1, 4, 4)
    masks[0, 0, 0] = 1
    targets = Targets.of([torch.tensor([0])], [masks])
    class_logits_LBQK = torch.tensor([[[[math.log(3.0), 0.0]]]])  # probabilities 3/4 and 1/4
    return matching_costs(
        torch.full((1, 1, 1, 1, 1), logit),
        class_logits_LBQK,
        targets,
        LossSettings(matching_targets=matching_targets),
    ).item()


def test_costs_are_those_of_a_hand_made_cell():
    # Logit 0: focal 0.25 * 0.25 * ln 2 if inside; dice 1 - (2 * 0.5 + 1) / (0.5 + 1 + 1).
    inside = 0.25 * 0.25 * math.log(2)
    assert one_query(0.0) == pytest.approx(-0.75 + 20 * inside + 0.2)
    # The mean of the cell is 1/16: a sixteenth of it is inside, the rest outside.
    focal = inside / 16 + 0.75 * 0.25 * math.log(2) * 15 / 16
    dice = 1 - (2 * 0.5 / 16 + 1) / (0.5 + 1 / 16 + 1)
    assert one_query(0.0, "area") == pytest.approx(-0.75 + 20 * focal + dice)


def test_the_cheapest_pairs_are_taken_and_padding_is_not():
    costs_QM = torch.tensor([[1.0, 2.0, -9.0], [1.0, 4.0, -9.0], [0.5, 0.0, -9.0]])
    pairs_4R = match(costs_QM[None, None].repeat(2, 2, 1, 1), [2, 1])
    assert pairs_4R.tolist() == [
        [0, 0, 0, 1, 1, 1],
        [0, 0, 1, 0, 0, 1],
        [1, 2, 2, 1, 2, 2],
        [0, 1, 0, 0, 1, 0],
    ]


def test_losses_are_named_as_in_the_reference_and_all_layers_count():
    losses_L3 = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    assert named_losses(losses_L3) == {
        "loss_ce": 7, "loss_mask": 8, "loss_dice": 9,
        "loss_ce_0": 1, "loss_mask_0": 2, "loss_dice_0": 3,
        "loss_ce_1": 4, "loss_mask_1": 5, "loss_dice_1": 6,
    }  # fmt: skip
    assert total_loss(losses_L3) == 12 + 20 * 15 + 18
    assert total_loss(losses_L3, LossSettings(2.0, 1.0, 0.5)) == 24 + 15 + 9


def test_every_layer_is_scored_by_itself(generator):
    layers, text_KD = random_layers(generator, count=3), text_vectors(generator)
    targets = Targets.of(LABELS, random_masks(generator, 1))
    together = set_losses(layers, text_KD, targets)
    alone = torch.cat([set_losses([layer], text_KD, targets) for layer in layers])
    torch.testing.assert_close(together, alone)


def test_a_batch_without_masks_learns_no_object_alone(generator):
    layers, text_KD = random_layers(generator), text_vectors(generator)
    nothing = class_masks(torch.full((40, 48), 255), 5, (40, 48))
    losses_L3 = set_losses(layers, text_KD, Targets.of(*zip(*[nothing] * 3, strict=True)))
    expected = [
        -layer.class_logits(text_KD).log_softmax(-1)[..., -1].mean().item() for layer in layers
    ]
    torch.testing.assert_close(losses_L3[:, 0], torch.tensor(expected))
    assert not losses_L3[:, 1:].any()


def test_an_image_without_masks_leaves_the_others_theirs(generator):
    layers, text_KD = random_layers(generator), text_vectors(generator)
    masks = random_masks(generator, 1)
    few = Targets.of([*LABELS[:2], torch.zeros(0, dtype=torch.int64)], [*masks[:2], masks[2][:0]])
    first_two = [
        LayerOutput(
            layer.mask_logits_BQhw[:2], layer.query_embeds_BQD[:2], layer.void_logits_BQ[:2]
        )
        for layer in layers
    ]
    found = set_losses(layers, text_KD, few)
    expected = set_losses(first_two, text_KD, Targets.of(LABELS[:2], masks[:2]))
    torch.testing.assert_close(found[:, 1:], expected[:, 1:])
    assert (found[:, 0] != expected[:, 0]).all()


def test_parts_of_a_batch_add_up_when_divided_by_the_totals_of_all(generator):
    layers, text_KD = random_layers(generator), text_vectors(generator)
    masks = random_masks(generator, 1)
    whole = set_losses(layers, text_KD, Targets.of(LABELS, masks))
    totals = Totals.of([len(labels) for labels in LABELS], queries=6)
    assert (totals.masks, totals.pairs, totals.queries) == (6, 6, 18)
    parts = [
        set_losses(
            [
                LayerOutput(
                    layer.mask_logits_BQhw[part],
                    layer.query_embeds_BQD[part],
                    layer.void_logits_BQ[part],
                )
                for layer in layers
            ],
            text_KD,
            Targets.of(LABELS[part], masks[part]),
            totals=totals,
        )
        for part in (slice(1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_more_masks_than_queries_are_no_more_pairs():
    totals = Totals.of([9, 1], queries=6)
    assert (totals.masks, totals.pairs, totals.queries) == (10, 7, 12)
    assert totals.class_weight(0.1) == pytest.approx(7.5)
    assert Totals.of([0], queries=6).class_weight(0.1) == pytest.approx(0.6)


def test_a_loss_that_is_no_number_gets_through_matching(generator):
    layers, text_KD = random_layers(generator), text_vectors(generator)
    layers[0].mask_logits_BQhw[1, 3] = math.nan  # of one query, which need not be matched
    losses_L3 = set_losses(layers, text_KD, Targets.of(LABELS, random_masks(generator, 1)))
    assert losses_L3[0].isnan().tolist() == [False, True, True]
    assert not losses_L3[1].isnan().any()


def test_classes_become_masks_in_ascending_order():
    positions_HW = torch.from_numpy(draw_classes("3.0", "333"))
    labels_M, masks_MHW = class_masks(positions_HW, 4, (4, 5))
    assert labels_M.tolist() == [0, 3]
    expected = torch.zeros(2, 4, 5)
    expected[0, 0, 2] = 1
    expected[1, [0, 1, 1, 1], [0, 0, 1, 2]] = 1
    assert torch.equal(masks_MHW, expected)


def test_what_is_no_class_is_part_of_no_mask():
    labels_M, _ = class_masks(torch.tensor([[255, 4, 1]], dtype=torch.uint8), 4, (1, 3))
    assert labels_M.tolist() == [1]
    assert labels_M.dtype == torch.int64
