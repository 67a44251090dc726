"""The proposer in half precision: what is folded, what it changes, what is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import jobs.annotation_flows
import pipeline.models.device
from jobs.annotation_flows import slow_precisions
from pipeline.machines import Device
from pipeline.models.device import computes_quickly
from pipeline.models.half_precision import lower
from pipeline.models.maskformer import BackboneConfig, MaskFormer, MaskFormerConfig
from pipeline.models.resnet import FrozenNorm
from pipeline.stages.propose import Propose
from pipeline.synthetic import TEST_SEED
from schemas.errors import ModelError
from tests.bench.scenes import decoded
from tests.test_approximate_settings import changed, plan

BACKBONES = {
    "deeplab stem": ("r101c", {"blocks": (1, 1, 1, 1), "res5_dilations": (2,)}),
    "basic stem": ("r50", {"blocks": (1, 2, 1, 1), "res5_dilations": (1,)}),
}


def network(name):
    preset, options = BACKBONES[name]
    narrow = {
        "stem_channels": 16, "bottleneck_channels": (8, 8, 16, 16),
        "out_channels": (32, 32, 64, 64),
    }  # fmt: skip
    backbone = BackboneConfig(kind="resnet", name=preset, options={**narrow, **options})
    torch.manual_seed(0)
    model = MaskFormer(
        MaskFormerConfig(
            backbone=backbone, fpn_channels=32, mask_channels=16, embedding_dim=32, queries=6,
            hidden_channels=32, heads=4, feedforward_channels=32, decoder_layers=2,
        )
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, FrozenNorm):  # as after training: no norm is the identity
            for values in (module.weight, module.bias, module.running_mean):
                values.normal_(1.0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", BACKBONES)
def test_folded_norms_change_nothing_but_rounding(name):
    model = network(name)
    folded = copy.deepcopy(model)
    lower(folded, torch.float32)
    assert any(isinstance(module, FrozenNorm) for module in model.modules())
    assert not any(isinstance(module, FrozenNorm) for module in folded.modules())
    images = torch.randn(2, 3, 64, 96)
    for ours, theirs in zip(
        vars(folded(images)).values(), vars(model(images)).values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_weights_are_kept_in_half_precision_where_autocast_would_cast_them():
    model = network("deeplab stem")
    lower(model, torch.bfloat16)
    kinds = {type(module): weight.dtype for module in model.modules()
             for weight in module.parameters(recurse=False)}  # fmt: skip
    assert kinds[nn.Conv2d] == kinds[nn.Linear] == torch.bfloat16
    assert kinds[nn.GroupNorm] == kinds[nn.LayerNorm] == torch.float32


@pytest.mark.parametrize("arithmetic", ["bf16", "fp16"])
def test_half_precision_moves_few_mask_pixels(arithmetic):
    images = decoded(TEST_SEED, 2)
    logits = [
        [
            np.frombuffer(row["mask_logits"], np.float32)
            for row in Propose("maskformer", None, 32, "float32", arithmetic=name)(
                images
            ).to_pylist()
        ]
        for name in ("fp32", arithmetic)
    ]
    for full, half in zip(*logits, strict=True):
        assert (full != half).any()
        assert ((full > 0) == (half > 0)).mean() > 0.995


def test_only_half_precision_changes_fingerprints_and_a_network_is_needed():
    assert changed(proposer_precision="fp32") == []
    assert changed(proposer_precision="bf16") == ["proposal", "embedding", "label"]
    assert plan(proposer_precision="bf16").deciding["proposer_precision"] == "bf16"
    with pytest.raises(
        ModelError, match=r"proposer_precision is bf16, .*'felzenszwalb' has no net"
    ):
        plan(proposer="felzenszwalb", proposer_precision="bf16")


@pytest.mark.parametrize(
    "units, quick",
    [
        ({"avx512_bf16": False, "amx_bf16": True, "avx2": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, False),
        ({"avx2": True}, True),
    ],
    ids=["has", "has none", "not known"],
)
def test_cpus_without_units_for_half_precision_are_told(monkeypatch, units, quick):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    monkeypatch.setattr(pipeline.models.device, "pick_device", lambda: "cpu")
    monkeypatch.setattr(jobs.annotation_flows, "num_gpus", lambda: 0)
    assert computes_quickly("bf16") == quick
    assert computes_quickly("fp32")
    on_cpu, on_gpu = Device(0.0), Device(1.0)
    asked = plan(proposer_precision="bf16", clip_precision="bf16", address="local")
    remarks = list(slow_precisions(asked, (on_cpu, on_cpu)))
    options = [remark.split(":")[0] for remark in remarks]
    assert options == ([] if quick else ["--proposer-precision bf16", "--clip-precision bf16"])
    assert len(list(slow_precisions(asked, (on_gpu, on_cpu)))) == (not quick)
    assert not list(slow_precisions(plan(address="local"), (on_cpu, on_cpu)))
