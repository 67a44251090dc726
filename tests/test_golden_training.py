"""Golden: matching, losses, gradients, one optimiser step and the schedule (spec 3.1)."""

import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.maskformer import LOGIT_SCALE, LayerOutput, MaskFormer
from pipeline.models.maskformer_proposer import network_input
from pipeline.training.schedule import PaperOptimiser, poly
from pipeline.training.set_loss import (
    LOSSES,
    LossSettings,
    Totals,
    match,
    matching_costs,
    named_losses,
    set_losses,
    total_loss,
)
from pipeline.training.targets import Targets, class_masks
from tests.golden import ROOT, Network, in_their_layout, networks, noise, parts, proposer, text_of

FOLDER = ROOT / "training"
TOLERANCE = 1e-4  # of one stage, fed what is stored
# End to end, relative to the largest value. The reference's own noise reaches 3e-5 in the losses
# and 2e-3 in the gradients (the same network in fp64 differs by that much).
LOSS_TOLERANCE = 3e-4
GRADIENT_TOLERANCE = 5e-3

FILES = (FOLDER / "training.json", FOLDER / "training.npz")
IS_HERE = all(file.is_file() for file in FILES)

pytestmark = [
    pytest.mark.skipif(not IS_HERE, reason=f"no golden training at {FOLDER}"),
    pytest.mark.skipif(not networks(), reason=f"no golden networks at {ROOT}"),
]


@cache
def record() -> dict[str, Any]:
    return json.loads(FILES[0].read_text()) if IS_HERE else {"cases": {}}


@cache
def arrays() -> dict[str, NDArray[Any]]:
    return dict(np.load(FILES[1]))


def stored(name: str) -> Tensor:
    return torch.from_numpy(arrays()[name].copy())


@cache
def network() -> Network:
    """The network whose parameters the gradients are of."""
    names = set(next(iter(record()["cases"].values()))["grad_norms"])
    for candidate in networks():
        shapes = {name: value.shape for name, value in parts(candidate).proposer.items()}
        given = [re.fullmatch(r"\w+\.grad\.(.+)", name) for name in arrays()]
        fits = all(shapes.get(found[1]) == arrays()[found[0]].shape for found in given if found)
        if fits and names == trained_names(candidate):
            return candidate
    raise LookupError(f"the golden training at {FOLDER} is of none of the networks of {ROOT}")


def trained_names(candidate: Network) -> set[str]:
    return {*in_their_layout(dict(proposer(candidate).named_parameters()))}


@cache
def settings() -> LossSettings:
    """The loss's weights: the network's own for no object, the others from what they did."""
    case = next(iter(record()["cases"].values()))
    class_weight, mask_weight, dice_weight = (
        round(case["losses_weighted"][name] / case["losses_unweighted"][name], 4) for name in LOSSES
    )
    no_object_weight = float(parts(network()).unused["criterion.empty_weight"][-1])
    return LossSettings(class_weight, mask_weight, dice_weight, no_object_weight)


@dataclass(frozen=True)
class Case:
    """One batch, pushed forward and backward through our network."""

    name: str

    @property
    def record(self) -> dict[str, Any]:
        return record()["cases"][self.name]

    @cached_property
    def indices(self) -> list[int]:
        index_of = {entry["name"]: entry["index"] for entry in network().config["images"]}
        return [index_of[name] for name in self.record["images"]]

    @cached_property
    def targets(self) -> Targets:
        num_classes = len(record()["seen_names"])
        masks = [
            class_masks(stored(f"label{index}"), num_classes, tuple(self.record["padded_hw"]))
            for index in self.indices
        ]
        return Targets.of(*zip(*masks, strict=True))

    @cached_property
    def text_KD(self) -> Tensor:
        names = network().vocabulary["names"]
        chosen = [names.index(name) for name in record()["seen_names"]]
        if "single" in network().texts:
            return torch.from_numpy(network().texts["single"])[chosen]
        return text_of(network(), "single")[chosen]

    @cached_property
    def model(self) -> MaskFormer:
        """The network in training mode, without dropout."""
        source = proposer(network())
        model = MaskFormer(source.config.model_copy(update={"dropout": 0.0}))
        model.load_state_dict(source.state_dict())
        return model.train()

    @cached_property
    def layers(self) -> list[LayerOutput]:
        images = [
            arrays()[f"image_u8_{index}"]
            if f"image_u8_{index}" in arrays()
            else network().stages[f"img{index}.image_u8"]
            for index in self.indices
        ]
        pixels_B3HW = network_input(
            [image_3HW.transpose(1, 2, 0) for image_3HW in images],
            self.model.config,
            tuple(self.record["padded_hw"]),
            torch.device("cpu"),
        )
        output = self.model(pixels_B3HW)
        return [*output.aux, output]

    @cached_property
    def losses_L3(self) -> Tensor:
        return set_losses(self.layers, self.text_KD, self.targets, settings())

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        total_loss(self.losses_L3, settings()).backward()
        # Cloned, since the optimiser clips in place.
        return in_their_layout(
            {name: value.grad.clone() for name, value in self.model.named_parameters()}
        )

    @cached_property
    def class_logits_LBQK(self) -> Tensor:
        return torch.stack([layer.class_logits(self.text_KD) for layer in self.layers]).detach()

    @cached_property
    def mask_logits_LBQhw(self) -> Tensor:
        return torch.stack([layer.mask_logits_BQhw for layer in self.layers]).detach()

    def given(self, pattern: str) -> list[tuple[str, ...]]:
        """The groups of a pattern in every name of this case's arrays."""
        found = [re.fullmatch(f"{self.name}\\.{pattern}", name) for name in arrays()]
        return [match.groups() for match in found if match]

    def costs(self) -> list[tuple[int, int, Tensor]]:
        """Layer, image within the batch, and stored costs (Q, M)."""
        return [
            (int(layer), self.indices.index(int(image)), self.cost(layer, image))
            for layer, image in self.given(r"layer(\d+)\.img(\d+)\.cost")
        ]

    def cost(self, layer: str, image: str) -> Tensor:
        return stored(f"{self.name}.layer{layer}.img{image}.cost")

    def pairs(self, layer: int, row: int) -> Tensor:
        """The stored assignment (2, M): queries, masks."""
        prefix = f"{self.name}.layer{layer}.img{self.indices[row]}"
        return torch.stack([stored(f"{prefix}.assign_{side}") for side in ("query", "target")])


CASES = [Case(name) for name in record()["cases"]]


def cases_with(pattern: str) -> pytest.MarkDecorator:
    """Every case that stores an array of this pattern."""
    found = [case for case in CASES if case.given(pattern)]
    return pytest.mark.parametrize("case", found, ids=[case.name for case in found])


each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
each_fed_case = cases_with(r"layer(\d+)\.mask_logits")


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def close_to_largest(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def chosen(pairs_4R: Tensor, layer: int, row: int) -> Tensor:
    return pairs_4R[2:, (pairs_4R[0] == layer) & (pairs_4R[1] == row)]


@each_case
def test_golden_targets(case):
    classes = [
        labels_M[:count].tolist()
        for labels_M, count in zip(case.targets.labels_BM, case.targets.counts, strict=True)
    ]
    assert classes == case.record["target_classes"]
    assert sum(case.targets.counts) == case.record["num_masks"]


@each_case
def test_golden_layer_outputs(case):
    layers = case.given(r"layer(\d+)\.logits")
    assert layers
    tolerance = noise(network(), "query_logits")
    for (layer,) in layers:
        expected = stored(f"{case.name}.layer{layer}.logits")
        close(case.class_logits_LBQK[int(layer)], expected, tolerance)
    for (layer,) in case.given(r"layer(\d+)\.mask_logits"):
        expected = stored(f"{case.name}.layer{layer}.mask_logits")
        found = case.mask_logits_LBQhw[int(layer)].view_as(expected)
        close(found, expected, noise(network(), "mask_logits"))


def stored_layers(case: Case) -> dict[int, LayerOutput]:
    """The layers whose logits are all stored. Their class logits are those with unit vectors."""
    layers = {}
    for (layer,) in case.given(r"layer(\d+)\.mask_logits"):
        class_logits_BQK = stored(f"{case.name}.layer{layer}.logits")
        mask_logits = stored(f"{case.name}.layer{layer}.mask_logits")
        mask_logits_BQhw = mask_logits.view(*class_logits_BQK.shape[:2], *mask_logits.shape[-2:])
        embeds_BQK = class_logits_BQK[..., :-1] / LOGIT_SCALE
        layers[int(layer)] = LayerOutput(mask_logits_BQhw, embeds_BQK, class_logits_BQK[..., -1])
    return layers


@each_fed_case
def test_golden_costs_of_stored_logits(case):
    fed = stored_layers(case)
    unit_KK = torch.eye(len(record()["seen_names"]))
    for layer, output in fed.items():
        logits = output.mask_logits_BQhw[None], output.class_logits(unit_KK)[None]
        found = matching_costs(*logits, case.targets, settings())
        expected = [(row, cost_QM) for at, row, cost_QM in case.costs() if at == layer]
        assert expected
        for row, cost_QM in expected:
            close(found[0, row, :, : cost_QM.shape[1]], cost_QM, 1e-5)


@each_fed_case
def test_golden_losses_of_stored_logits(case):
    fed = stored_layers(case)
    unit_KK = torch.eye(len(record()["seen_names"]))
    found = set_losses([*fed.values()], unit_KK, case.targets, settings())
    for layer, losses in zip(fed, found.tolist(), strict=True):
        suffix = "" if layer == len(case.layers) - 1 else f"_{layer}"
        expected = [case.record["losses_unweighted"][f"{name}{suffix}"] for name in LOSSES]
        assert losses == pytest.approx(expected, rel=1e-5)


@each_case
def test_golden_assignment_of_stored_costs(case):
    assert case.costs()
    for layer, row, cost_QM in case.costs():
        pairs_4R = match(cost_QM[None, None], [cost_QM.shape[1]])
        assert torch.equal(pairs_4R[2:], case.pairs(layer, row).long())


@each_case
def test_golden_costs_and_assignment(case):
    found = matching_costs(case.mask_logits_LBQhw, case.class_logits_LBQK, case.targets, settings())
    pairs_4R = match(found, case.targets.counts)
    for layer, row, expected in case.costs():
        close_to_largest(found[layer, row, :, : expected.shape[1]], expected, LOSS_TOLERANCE)
        assert torch.equal(chosen(pairs_4R, layer, row), case.pairs(layer, row).long())


@each_case
def test_golden_losses(case):
    weights = case.losses_L3.new_tensor(settings().weights)
    for losses_L3, expected in (
        (case.losses_L3, case.record["losses_unweighted"]),
        (case.losses_L3 * weights, case.record["losses_weighted"]),
    ):
        assert named_losses(losses_L3) == pytest.approx(expected, rel=LOSS_TOLERANCE)
    total = total_loss(case.losses_L3, settings()).item()
    assert total == pytest.approx(case.record["total"], rel=LOSS_TOLERANCE)


@each_case
def test_golden_losses_of_a_batch_in_parts(case):
    """As workers and accumulation share a batch: image by image, the parts are added up."""
    totals = Totals.of(case.targets.counts, case.model.config.queries)
    parts = []
    for row, count in enumerate(case.targets.counts):
        own = slice(row, row + 1)
        layers = [
            LayerOutput(
                layer.mask_logits_BQhw[own], layer.query_embeds_BQD[own], layer.void_logits_BQ[own]
            )
            for layer in case.layers
        ]
        labels, masks = case.targets.labels_BM[own, :count], case.targets.masks_BMHW[own, :count]
        targets = Targets(labels, masks, (count,))
        parts.append(set_losses(layers, case.text_KD, targets, settings(), totals))
    found = named_losses(sum(parts))
    assert found == pytest.approx(case.record["losses_unweighted"], rel=LOSS_TOLERANCE)


@each_case
def test_golden_gradient_norms(case):
    norms = {name: value.norm().item() for name, value in case.gradients.items()}
    total = case.record["grad_norm_total"]
    # Some gradients are zero but for rounding: the first layer's queries all hold the same.
    assert norms == pytest.approx(
        case.record["grad_norms"], rel=GRADIENT_TOLERANCE, abs=1e-9 * total
    )
    assert np.linalg.norm([*norms.values()]) == pytest.approx(total, rel=GRADIENT_TOLERANCE)


@cases_with(r"grad\.(.+)")
def test_golden_gradients(case):
    for (name,) in case.given(r"grad\.(.+)"):
        expected = stored(f"{case.name}.grad.{name}")
        found = case.gradients[name].view_as(expected)
        close_to_largest(found, expected, GRADIENT_TOLERANCE)


def optimiser() -> PaperOptimiser:
    told = record()["optimizer"]
    return PaperOptimiser(
        learning_rate=told["base_lr"],
        backbone_factor=told["backbone_multiplier"],
        weight_decay=max(group["weight_decay"] for group in record()["optimizer_groups"].values()),
        max_norm=told["clip_global_norm"],
    )


def test_golden_optimiser_groups():
    model = CASES[0].model
    ours = {id(value): name for name, value in model.named_parameters()}
    optimizer = optimiser().build(model)
    found = {
        ours[id(value)]: torch.tensor([group["lr"], group["weight_decay"]])
        for group in optimizer.param_groups
        for value in group["params"]
    }
    told = record()["optimizer"]
    assert optimizer.defaults["betas"] == tuple(told["betas"])
    assert optimizer.defaults["eps"] == told["eps"]
    expected = record()["optimizer_groups"]
    for name, values in in_their_layout(found).items():
        wanted = torch.tensor([expected[name]["lr"], expected[name]["weight_decay"]])
        assert torch.equal(values, wanted.repeat(len(values) // 2)), name
    assert in_their_layout(found).keys() == expected.keys()


@cases_with(r"after_step\.(.+)")
def test_golden_optimiser_step(case):
    case = Case(case.name)  # not the one that other tests use: the step changes its weights
    assert case.gradients
    before = {name: value.detach().clone() for name, value in case.model.named_parameters()}
    norm = optimiser().step(optimiser().build(case.model))
    assert norm == pytest.approx(case.record["grad_norm_total"], rel=GRADIENT_TOLERANCE)
    after = dict(case.model.named_parameters())
    compare_values(case, in_their_layout(after))
    moved = in_their_layout({name: (after[name] - before[name]).detach() for name in after})
    norms = {name: value.norm().item() for name, value in moved.items()}
    expected = record().get("step_delta_norms")
    if expected:
        tiny = 1e-3 * record()["optimizer"]["base_lr"]
        assert norms == pytest.approx(expected, rel=GRADIENT_TOLERANCE, abs=tiny)


def compare_values(case: Case, after: dict[str, Tensor]) -> None:
    """Elements whose gradient is not tiny, to a hundredth of the parameter's learning rate."""
    for (name,) in case.given(r"after_step\.(.+)"):
        expected = stored(f"{case.name}.after_step.{name}")
        gradient = case.gradients[name].view_as(expected).abs()
        clear = gradient > 2 * GRADIENT_TOLERANCE * gradient.max()
        assert clear.any()
        rate = record()["optimizer_groups"][name]["lr"]
        rounding = torch.finfo(torch.float32).eps * expected.abs().max().item()
        difference = (after[name].view_as(expected) - expected)[clear].abs().max()
        assert difference <= 0.01 * rate + rounding, name


def test_golden_learning_rates():
    told, base = record()["lr_schedule"], record()["optimizer"]["base_lr"]
    for iteration, rate in told["lr_at_iteration"].items():
        factor = poly(int(iteration), told["max_iter"], told["power"], told["constant_ending"])
        assert base * factor == pytest.approx(rate, rel=1e-12)
