"""Classifiers that show CLIP an image once: one-pass (masked attention) and mask pooling."""

from contextlib import nullcontext
from threading import Barrier

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import pipeline.models.passes
from pipeline.masks import SoftMasks
from pipeline.models import find_classifier
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.clip_positions import input_size
from pipeline.models.crops import CropSettings, crop_regions
from pipeline.models.device import threads
from pipeline.models.whole_image import WholeImageSettings, grid_shares, holds_pixels
from schemas.annotate_config import AnnotateConfig
from schemas.errors import ModelError
from tests.tiny_clips import save_small_clip

# The classifier, a family it takes, and what gives the family's tower several layers.
KINDS = {
    "ViT-B-16": ("one-pass", {"layers": 3, "image_size": 64}),
    "convnext_base_w": ("pooling", {"image_size": 128}),
    "RN50": ("pooling", {"image_size": 128}),
}
EVERYWHERE = 30.0  # a logit whose sigmoid is 1 in float32


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Return the name of a small CLIP of a family, written once."""
    return {
        family: save_small_clip(family, tmp_path_factory.mktemp("clip") / family, **changes)
        for family, (_, changes) in KINDS.items()
    }


@pytest.fixture(params=KINDS)
def kind(request, clips):
    return KINDS[request.param][0], clips[request.param]


def load(kind, precision="fp32", batch=8, **settings):
    classifier, name = kind
    clip = Clip.load(ClipSource(name, precision=precision))
    return clip, find_classifier(classifier).load(clip, WholeImageSettings(**settings), batch)


def photo(height=90, width=130, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, 6, 8), generator=generator)
    return (255 * interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]).byte()


def blobs(count=5, height=90, width=130, seed=0):
    """Return soft masks on a grid over the padded image; the second is empty."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 6 * torch.randn((1, count, 4, 5), generator=generator)
    logits_Qhw = interpolate(coarse, (24, 40), mode="bicubic")[0]
    logits_Qhw[1:2] = -5.0
    return SoftMasks(logits_Qhw, (96, 160), (height, width))


def everywhere(count=1):
    return SoftMasks(torch.full((count, 24, 40), EVERYWHERE), (96, 160), (90, 130))


def cosines(first_VD, second_VD):
    return torch.nn.functional.cosine_similarity(first_VD.double(), second_VD.double())


@pytest.mark.parametrize("side", [None, 160])
def test_a_mask_over_the_whole_image_has_clips_own_vector_of_it(kind, side):
    clip, classifier = load(kind, side=side)
    image_3HW = photo()
    (found,) = classifier.embed([(image_3HW, everywhere(2))])
    size = (side or clip.side,) * 2
    squashed = interpolate(image_3HW[None].float(), size, mode="bicubic", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (clip.mean, clip.std))
    has_positions = "convnext" not in kind[1]
    with input_size(clip.model.visual, size) if has_positions else nullcontext():
        own_1D = clip.encode_crops((squashed.clamp(0, 255) / 255 - mean) / std, 1)
    assert found.valid_Q.tolist() == [True, True]
    assert (1 - cosines(found.clip_embeds_VD, own_1D)).max() < 1e-6


def test_masks_do_not_see_each_other_and_images_not_their_batch(kind):
    _, classifier = load(kind)
    images = [photo(seed=seed) for seed in range(3)]
    masks = [blobs(count, seed=count) for count in (5, 2, 7)]
    together = classifier.embed(zip(images, masks, strict=True))
    for image_3HW, own, found in zip(images, masks, together, strict=True):
        (alone,) = classifier.embed([(image_3HW, own)])
        torch.testing.assert_close(alone.clip_embeds_VD, found.clip_embeds_VD, atol=1e-5, rtol=0)
        for row, query in enumerate(found.valid_Q.nonzero()[:, 0].tolist()):
            one = SoftMasks(own.logits_Qhw[query, None], own.padded, own.size)
            (single,) = classifier.embed([(image_3HW, one)])
            torch.testing.assert_close(
                single.clip_embeds_VD[0], found.clip_embeds_VD[row], atol=1e-5, rtol=0
            )
    _, smaller = load(kind, batch=2)
    for one, other in zip(smaller.embed(zip(images, masks, strict=True)), together, strict=True):
        torch.testing.assert_close(one.clip_embeds_VD, other.clip_embeds_VD, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [None, 160])
def test_passes_side_by_side_change_nothing(kind, side, monkeypatch):
    """A tower is prepared once for all of them: what it is prepared by is not one thread's."""
    monkeypatch.setattr(pipeline.models.passes, "_LAYER_BYTES", 1)  # an image a pass
    regions = [(photo(seed=seed), blobs(seed=seed)) for seed in range(6)]
    found = []
    for number in (1, 2):
        with threads(number):
            clip, classifier = load(kind, batch=None, side=side)
            if number == 2 and kind[0] == "one-pass":  # both must be in it
                both = Barrier(2, timeout=30)
                clip.model.visual.conv1.register_forward_hook(
                    lambda *_, both=both: (both.wait(), None)[1]
                )
            found.append(classifier.embed(regions))
    for alone, beside in zip(*found, strict=True):
        torch.testing.assert_close(beside.clip_embeds_VD, alone.clip_embeds_VD, atol=1e-5, rtol=0)


def test_what_a_mask_covers_decides_its_vector(kind):
    """Halves of one image differ, more so than the same halves cut out a little larger."""
    _, classifier = load(kind, side=128)
    image_3HW = photo()
    columns = torch.arange(40).expand(24, 40)
    left, larger = (torch.where(columns < stop, 9.0, -9.0) for stop in (15, 16))
    logits_Qhw = torch.stack([left, larger, -left])
    (found,) = classifier.embed([(image_3HW, SoftMasks(logits_Qhw, (96, 160), (90, 130)))])
    first, near, other = found.clip_embeds_VD
    assert 1 - cosines(first[None], other[None]) > 4 * (1 - cosines(first[None], near[None]))


def test_pixels_outside_a_mask_count_for_nothing_where_layers_do_not_mix_them(clips):
    """In the only layer with mask tokens these see embedded patches, each of its own pixels."""
    kind = ("one-pass", clips["ViT-B-16"])
    clip, classifier = load(kind, layers=1)
    clip.model.visual.transformer.resblocks = clip.model.visual.transformer.resblocks[-1:]
    image_3HW = photo(96, 160)
    changed = image_3HW.clone()
    changed[:, :, 80:] = 255 - changed[:, :, 80:]
    logits_Qhw = torch.where(torch.arange(40) < 19, 9.0, -9.0).expand(1, 24, 40)
    # The filter that squashes the image reaches over the middle; the patch there is left out.
    logits_Qhw = torch.where(torch.arange(40) < 10, logits_Qhw, -9.0)
    masks = SoftMasks(logits_Qhw, (96, 160), (96, 160))
    first, second = classifier.embed([(image_3HW, masks), (changed, masks)])
    torch.testing.assert_close(first.clip_embeds_VD, second.clip_embeds_VD, atol=1e-6, rtol=0)
    masks = SoftMasks(-logits_Qhw, (96, 160), (96, 160))
    first, second = classifier.embed([(image_3HW, masks), (changed, masks)])
    assert (first.clip_embeds_VD - second.clip_embeds_VD).abs().max() > 1e-3


def test_fewer_layers_let_the_masks_see_less_of_themselves(clips):
    kind = ("one-pass", clips["ViT-B-16"])
    found = [load(kind, layers=n)[1].embed([(photo(), blobs())])[0] for n in (1, 2, 3, None)]
    assert torch.equal(found[2].clip_embeds_VD, found[3].clip_embeds_VD)  # all of its three
    assert (found[0].clip_embeds_VD - found[1].clip_embeds_VD).abs().max() > 1e-3
    assert (found[1].clip_embeds_VD - found[2].clip_embeds_VD).abs().max() > 1e-3


@pytest.mark.parametrize("precision, tolerance", [("bf16", 1e-3), ("fp16", 5e-5)])
def test_half_precision_agrees(kind, precision, tolerance):
    regions = [(photo(), blobs()), (photo(seed=1), blobs(3, seed=3))]
    full, half = (load(kind, name)[1].embed(regions) for name in ("fp32", precision))
    for one, other in zip(full, half, strict=True):
        assert other.clip_embeds_VD.dtype == torch.float32
        assert torch.equal(one.valid_Q, other.valid_Q)
        assert (1 - cosines(one.clip_embeds_VD, other.clip_embeds_VD)).max() < tolerance


def test_empty_masks_are_invalid_as_for_crops(kind):
    _, classifier = load(kind, mask_threshold=0.6)
    image_3HW, masks = photo(), blobs(9, seed=2)
    cut = crop_regions(
        image_3HW, masks, CropSettings(0.6), side=32, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    (found,) = classifier.embed([(image_3HW, masks)])
    assert 0 < cut.valid_Q.sum() < 9
    assert torch.equal(found.valid_Q, cut.valid_Q)
    assert len(found.clip_embeds_VD) == int(cut.valid_Q.sum())
    none = SoftMasks(torch.full((3, 24, 40), -5.0), (96, 160), (90, 130))
    no_proposals = SoftMasks(torch.zeros((0, 24, 40)), (96, 160), (90, 130))
    for batch in ([none], [no_proposals], [none, masks, no_proposals]):
        results = classifier.embed([(image_3HW, one) for one in batch])
        assert [int(one.valid_Q.sum()) for one in results] == [
            len(found.clip_embeds_VD) if one is masks else 0 for one in batch
        ]
        assert [len(one.valid_Q) for one in results] == [len(one.logits_Qhw) for one in batch]
    assert classifier.embed([]) == []


@pytest.mark.parametrize("min_prob", [0.3, 0.5, 0.8])
def test_a_mask_holds_pixels_exactly_where_the_whole_mask_does(min_prob):
    """Peaks of all heights about the threshold, in the image and in the padding beside it."""
    generator = torch.Generator().manual_seed(0)
    threshold = float(np.log(min_prob / (1 - min_prob)))
    logits_Qhw = torch.full((200, 6, 10), -7.0)
    for query in range(200):
        y, x = (
            torch.randint(0, 6, (1,), generator=generator),
            torch.randint(0, 10, (1,), generator=generator),
        )
        logits_Qhw[query, y, x] = threshold + 3 * torch.rand(1, generator=generator)
    masks = SoftMasks(logits_Qhw, (24, 40), (20, 33))
    expected = (masks.whole() > min_prob).flatten(1).any(dim=1)
    assert 20 < expected.sum() < 180
    assert torch.equal(masks.hold_pixels(min_prob), expected)
    assert torch.equal(holds_pixels(masks.whole(), min_prob), expected)


def test_shares_are_the_covered_part_of_every_place():
    generator = torch.Generator().manual_seed(0)
    logits_Qhw = 4 * torch.randn((3, 24, 40), generator=generator)
    shares_Qyx = grid_shares(SoftMasks(logits_Qhw, (96, 160), (90, 130)), 0.5, (4, 5))
    cells_QHW = (logits_Qhw > 0).float().repeat_interleave(4, 1).repeat_interleave(4, 2)
    # 90 rows in 4 places, 130 columns in 5: on a grid of half pixels both come out even.
    fine = cells_QHW[:, :90, :130].repeat_interleave(2, 1)
    expected = fine.view(3, 4, 45, 5, 26).mean(dim=(2, 4))
    torch.testing.assert_close(shares_Qyx, expected)
    dense = grid_shares(cells_QHW[:, :90, :130] * 0.9, 0.5, (4, 5))
    torch.testing.assert_close(dense, expected)


def test_a_mask_whose_cells_lie_outside_still_has_a_place():
    """A peak in the padding whose slope reaches the last pixels of the image."""
    logits_1hw = torch.full((1, 4, 4), -1.0)
    logits_1hw[0, :, 3] = 9.0
    masks = SoftMasks(logits_1hw, (16, 16), (16, 12))
    assert masks.hold_pixels(0.5).tolist() == [True]
    shares_Qyx = grid_shares(masks, 0.5, (2, 2))
    assert (shares_Qyx > 0).all()


@pytest.mark.parametrize(
    "classifier, family, changes, message",
    [
        ("one-pass", "RN50", {}, "is a ResNet; classifier one-pass needs a ViT"),
        ("one-pass", "convnext_base_w", {}, "has an image tower of timm .*needs a ViT"),
        ("one-pass", "ViT-B-16-SigLIP", {}, "has an image tower of timm .*needs a ViT"),
        ("one-pass", "coca_ViT-B-32", {}, "pools its patches by attention"),
        ("one-pass", "ViT-H-14-CLIPA", {}, "takes the mean of its patches"),
        ("one-pass", "ViT-B-16", {"one_pass_layers": 13}, "one_pass_layers is 13.* 1 to 12"),
        ("one-pass", "ViT-B-16", {"image_side": 230}, "image_side is 230.* 224 or 240 would do"),
        ("pooling", "ViT-B-16", {}, "has a ViT as its image tower; classifier pooling needs"),
        ("pooling", "ViT-B-16-SigLIP", {}, "has vit_base.* as its image tower"),
        ("pooling", "RN50", {"image_side": 250}, "image_side is 250.* 224 or 256 would do"),
        ("pooling", "RN50", {"image_side": 30}, "image_side is 30.*: 32 would do"),
    ],
)
def test_what_a_clip_cannot_do_is_refused_unloaded(classifier, family, changes, message):
    config = AnnotateConfig(source="a", vocabulary="b", output="c", clip=family, **changes)
    with pytest.raises(ModelError, match=message):
        find_classifier(classifier).check(ClipSource(family, "none"), config)


@pytest.mark.parametrize("classifier, family", [("one-pass", "RN50"), ("pooling", "ViT-B-16")])
def test_a_loaded_tower_of_another_kind_is_refused(clips, classifier, family):
    with pytest.raises(ModelError, match=f"classifier {classifier} needs a"):
        load((classifier, clips[family]))
