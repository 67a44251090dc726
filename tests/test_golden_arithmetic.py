"""Golden: each stage from masks to labels, fed the stored output of the stage before (spec 2)."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pipeline.fusion
from pipeline.fusion import (
    LOGIT_SCALE,
    fuse,
    label_map,
    query_probs,
    region_probs,
    score_tiles,
)
from pipeline.masks import mask_probs
from pipeline.models.crops import CropSettings, Regions, crop_regions, expand_boxes
from pipeline.resize import Size, padded_size, resized_size
from tests.golden import ROOT, Network, cases

TOLERANCE = 1e-4


def table(name: str) -> list[dict[str, Any]]:
    """The rows of a golden table; the test is skipped where there is none."""
    file = ROOT / name
    if not file.is_file():
        pytest.skip(f"no {file}")
    return json.loads(file.read_text())


def test_golden_sizes() -> None:
    for entry in table("sizes.json"):
        resized = resized_size(tuple(entry["orig"]), entry["short"], entry["long"])
        assert [*resized] == entry["resized"], entry
        assert [*padded_size(resized, 32)] == entry["padded"], entry


def test_golden_boxes() -> None:
    for entry in table("boxes.json"):
        boxes_14 = torch.tensor([entry["box"]])
        found_14 = expand_boxes(boxes_14, entry["ratio"], tuple(entry["image_hw"]))
        assert found_14.tolist() == [entry["crop"]], entry
        # Past every right and bottom edge; on the left and at the top zero always clamps.
        unbounded_14 = expand_boxes(boxes_14, entry["ratio"], (10**9, 10**9))
        assert unbounded_14.tolist() == [[max(side, 0) for side in entry["unclamped"]]], entry


class Case:
    """One image of one run, with its stored tensors at hand."""

    def __init__(self, network: Network, run: str, image: int) -> None:
        self.network, self.image = network, image
        self.settings: dict[str, Any] = network.config["runs"][run]
        self._stored = network.run(run)

    def has(self, name: str) -> bool:
        return f"img{self.image}.{name}" in self._stored

    def of_run(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self._stored[name]).copy())

    def stored(self, name: str) -> Tensor:
        return self.of_run(f"img{self.image}.{name}")

    @property
    def masks(self) -> Tensor:
        return mask_probs(
            self.network.stage(self.image, "mask_logits"),
            self.network.size(self.image, "padded_hw"),
            self.network.size(self.image, "input_hw"),
        )

    @property
    def regions(self) -> Regions:
        settings, clip = self.settings, self.network.config["clip"]
        return crop_regions(
            self.network.stage(self.image, "image_u8"),
            self.masks,
            CropSettings(
                settings["mask_threshold"],
                settings["mask_fill"],
                settings["mask_expand_ratio"],
                settings["mask_matting"],
            ),
            side=clip["image_size"],
            mean=tuple(clip["image_mean"]),
            std=tuple(clip["image_std"]),
        )

    @property
    def score_maps(self) -> list[str]:
        """Names of the stored parts of S."""
        prefix = f"img{self.image}."
        names = [name.removeprefix(prefix) for name in self._stored if name.startswith(prefix)]
        return [name for name in names if name.startswith("S_")]


@pytest.fixture(
    params=cases() or [pytest.param(None, marks=pytest.mark.skip(f"no golden sets at {ROOT}"))],
    ids=lambda case: f"{case[0].folder.name}-{case[1]}-{case[2]}" if case else "absent",
)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def text_of(case: Case) -> tuple[Tensor, Tensor]:
    """Text vectors of the query head and of the region head."""
    query = case.of_run("T")
    return query, case.of_run("T_region") if "T_region" in case._stored else query


def test_query_scores(case: Case) -> None:
    embeds_QD = case.network.stage(case.image, "query_embed")
    void_logits_Q = LOGIT_SCALE * embeds_QD @ case.of_run("no_object")
    found = query_probs(embeds_QD, text_of(case)[0], void_logits_Q)
    torch.testing.assert_close(found, case.stored("P"), atol=TOLERANCE, rtol=0)


def test_regions(case: Case) -> None:
    if not case.has("valid"):
        pytest.skip("this run calls no region classifier")
    regions = case.regions
    assert torch.equal(regions.valid_Q, case.stored("valid"))
    assert torch.equal(regions.boxes_V4, case.stored("box").long())
    size = case.network.size(case.image, "input_hw")
    ratio = case.settings["mask_expand_ratio"]
    expanded_V4 = expand_boxes(regions.boxes_V4, ratio, size)
    assert torch.equal(expanded_V4, case.stored("crop_box").long())
    area_Q = (case.masks > case.settings["mask_threshold"]).flatten(1).sum(dim=1)
    assert torch.equal(area_Q, case.stored("mask_area").long())


def test_crops(case: Case) -> None:
    if not case.has("crop_stats"):
        pytest.skip("this run has no crops")
    crops_V3SS = case.regions.crops_V3SS
    flat = crops_V3SS.flatten(2)
    stats = torch.stack([flat.mean(2), flat.std(2), flat.amin(2), flat.amax(2)], dim=2)
    torch.testing.assert_close(stats, case.stored("crop_stats"), atol=TOLERANCE, rtol=TOLERANCE)
    if case.has("crops"):
        position = {int(query): index for index, query in enumerate(case.regions.valid_Q.nonzero())}
        chosen = [position[int(query)] for query in case.stored("crops_query")]
        stored = case.stored("crops")
        rounding = 2e-3 if stored.dtype == torch.float16 else 0.0
        torch.testing.assert_close(
            crops_V3SS[chosen], stored.float(), atol=TOLERANCE, rtol=rounding
        )


def test_clip_scores(case: Case) -> None:
    if not case.has("C"):
        pytest.skip("this run has no CLIP scores")
    found = region_probs(case.stored("clip_feat"), text_of(case)[1])
    torch.testing.assert_close(found, case.stored("C"), atol=TOLERANCE, rtol=0)


def fused(case: Case) -> Tensor:
    """F of all queries, from the stored scores."""
    settings = case.settings
    query_QK = case.stored("P")
    seen = settings["seen_flags"]
    seen_K = None if seen is None else torch.tensor(seen, dtype=torch.bool)
    if not settings["ensemble"]:
        valid_Q, region_VK = torch.ones(len(query_QK), dtype=torch.bool), None
    else:
        valid_Q = case.stored("valid")
        region_VK = case.stored("C") if case.has("C") else query_QK.new_zeros(0, query_QK.shape[1])
    return fuse(query_QK, region_VK, valid_Q, seen_K, settings["ensemble_weight"])


def test_fused_scores(case: Case) -> None:
    found, expected = fused(case), case.stored("F")
    if len(expected) != len(found):  # CLIP only: the reference keeps the valid queries alone
        found = found[case.stored("valid")]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def score_map(scores_QK: Tensor, masks_QHW: Tensor, size: Size) -> Tensor:
    """S (K, H, W), put together from the tiles that the label map is made of."""
    tiles = score_tiles(scores_QK, masks_QHW, size)
    return torch.cat([tile.scores_KTW for tile in tiles], dim=1)


@pytest.mark.parametrize("tile_floats", [None, 20_000], ids=["one tile", "tiles"])
def test_score_map(case: Case, tile_floats: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if not case.score_maps:
        pytest.skip("this run stores no part of S")
    if tile_floats:
        monkeypatch.setattr(pipeline.fusion, "TILE_FLOATS", tile_floats)
    scores_QK, masks_QHW = fused(case), case.masks
    assert scores_QK.any(dim=1).sum() == case.stored("masks_used")
    final_KHW = score_map(scores_QK, masks_QHW, case.network.size(case.image, "orig_hw"))
    for name in case.score_maps:
        stored = case.stored(name)
        if name == "S_window":
            found = final_KHW[:, : stored.shape[1], : stored.shape[2]]
        elif step := re.fullmatch(r"S_sub(\d+)", name):
            found = final_KHW[:, :: int(step[1]), :: int(step[1])]
        else:
            step = re.fullmatch(r"S_before_resize_sub(\d+)", name)
            assert step, f"{name} is no known part of S"
            resized = score_map(scores_QK, masks_QHW, case.network.size(case.image, "input_hw"))
            found = resized[:, :: int(step[1]), :: int(step[1])]
        torch.testing.assert_close(found, stored, atol=TOLERANCE, rtol=TOLERANCE)


def test_labels(case: Case) -> None:
    height, width = case.network.size(case.image, "orig_hw")
    labels = label_map(fused(case), case.masks, (height, width))
    clear = ~case.stored("ambiguous")
    assert torch.equal(labels.classes_HW[clear], case.stored("argmax").long()[clear])
