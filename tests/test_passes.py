"""Few images at a time on a CPU: how many, and that it changes nothing else."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import pipeline.models.passes
import pipeline.stages.propose
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crop_classifier import CropClassifier
from pipeline.models.crops import CropSettings
from pipeline.models.embedded import EMBEDDED_CLIP
from pipeline.models.passes import crops_per_pass, images_per_pass
from pipeline.stages.propose import Propose
from pipeline.synthetic import TEST_SEED
from tests.bench.scenes import decoded

MIB = 2**20


class Wide(nn.Module):
    """A network whose widest result is in the middle, of `mib` MiB an image."""

    def __init__(self, mib: float) -> None:
        super().__init__()
        self.wide = nn.Linear(4, int(mib * MIB / 4))
        self.narrow = nn.Linear(int(mib * MIB / 4), 2)

    def forward(self, images_B3SS):
        return self.narrow(self.wide(images_B3SS.flatten(1)[:, :4]))


@pytest.mark.parametrize(
    "mib, count", [(0.01, 256), (1, 24), (5, 4), (30, 1)], ids=["tiny", "small", "large", "over"]
)
def test_as_many_crops_pass_as_keep_the_widest_layer_in_memory(mib, count):
    network = Wide(mib)
    assert crops_per_pass(network, torch.zeros(1, 3, 2, 2)) == count
    assert not any(module._forward_hooks for module in network.modules())


def test_images_pass_a_proposer_by_their_size():
    assert images_per_pass((640, 864)) == 1
    assert images_per_pass((128, 128)) == 24
    assert images_per_pass((32, 32)) == 256


def test_a_gpu_takes_many(monkeypatch):
    monkeypatch.setattr(pipeline.models.passes, "pick_device", lambda: "cuda")
    assert images_per_pass((640, 864)) == 256
    assert crops_per_pass(Wide(30).to("meta"), torch.zeros(1, 3, 2, 2, device="meta")) == 256


@pytest.fixture(scope="module")
def clip():
    return Clip.load(ClipSource(f"local-dir:{EMBEDDED_CLIP}"))


def test_the_classifier_asks_clip_how_many_where_nobody_says(clip, monkeypatch):
    monkeypatch.setattr(pipeline.models.passes, "_LAYER_BYTES", 3 * MIB)
    few = clip.per_pass(clip.side)
    assert 1 < few < 256
    assert clip.per_pass(2 * clip.side) == few // 4
    passes = []
    hook = clip.model.visual.register_forward_hook(
        lambda _module, _inputs, output: passes.append(len(output))
    )
    regions = [(torch.zeros(3, 40, 40), torch.ones(2 * few + 1, 40, 40))]
    found = {
        batch: CropClassifier(clip, CropSettings(), batch).embed(regions)[0].clip_embeds_VD
        for batch in (None, 2 * few + 1)
    }
    hook.remove()
    assert passes == [1, few, few, 1, 2 * few + 1]  # the first is the one that is tried
    torch.testing.assert_close(found[None], found[2 * few + 1])


def test_proposals_are_those_of_one_pass(monkeypatch):
    images = pa.concat_tables([decoded(TEST_SEED, 1)] * 3)
    stage = Propose("maskformer", None, 32, "float32")
    counts = []
    propose = stage.model.propose
    monkeypatch.setattr(
        stage.model, "propose", lambda images: (counts.append(len(images)), propose(images))[1]
    )
    found = []
    for most in (256, 2):
        monkeypatch.setattr(pipeline.stages.propose, "images_per_pass", lambda _size, n=most: n)
        found.append(
            [np.frombuffer(row["mask_logits"], np.float32) for row in stage(images).to_pylist()]
        )
    assert counts == [3, 2, 1]
    for at_once, in_passes in zip(*found, strict=True):
        np.testing.assert_allclose(in_passes, at_once, rtol=1e-3, atol=1e-3)
