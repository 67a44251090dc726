"""The per-pixel baseline: its network, its directory, and the labels of one trained in a minute."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, interpolate, normalize

from pipeline.fusion import LabelMap, region_probs
from pipeline.models import PixelEmbedder, find_proposer
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crops import CropSettings, crop_regions
from pipeline.models.maskformer import BackboneConfig, MaskFormer, MaskFormerConfig
from pipeline.models.maskformer_proposer import padded_batch
from pipeline.models.per_pixel import PerPixel, PerPixelConfig, class_logits
from pipeline.pixels import PixelScorer, pixel_score_tiles
from pipeline.resize import resize_image, resized_size
from pipeline.segments import decode_label_map
from pipeline.stages.fetch import FetchDecode
from pipeline.stages.propose import Propose
from pipeline.synthetic import COLOURS, VOCABULARY, make_scene
from schemas.annotate_config import SourceSettings
from schemas.annotation import ANNOTATED, PROPOSED, conform
from schemas.errors import ModelError
from tests.classify import make_classify
from tests.dataset_checks import check_rows
from tests.helpers import save_tiny_clip, take_inventory

DIM = 16
TINY = PerPixelConfig(
    backbone=BackboneConfig(
        name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [16, 24, 32, 32]}
    ),
    fpn_channels=64,  # GroupNorm(32) on 32 channels would take the colour of a picture away
    mask_channels=24,
    embedding_dim=DIM,
    short_edge=128,
    long_edge=512,
)
IGNORED = 255
CANVAS, STEPS = 64, 100
# The colour of every class of the scenes: a task that a tiny network learns in seconds.
COLOUR_OF = np.array(
    [next(i for i, colour in enumerate(COLOURS) if colour in name.split()) for name in VOCABULARY]
)
# Like a CLIP's vectors: of unit length, and not at right angles.
TEXT_KD = normalize(
    torch.randn(len(COLOURS), DIM, generator=torch.Generator().manual_seed(3)), dim=1
)


def images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


training_scene = cache(partial(make_scene, 0))


def batch_of(rng):
    """Return normalised crops of scenes and the colours of their pixels, part of them ignored."""
    pixels, truths = [], []
    for index in rng.integers(40, size=8):
        scene = training_scene(int(index))
        top, left = (int(rng.integers(side - CANVAS + 1)) for side in scene.label_map_HW.shape)
        window = slice(top, top + CANVAS), slice(left, left + CANVAS)
        truth_HW = COLOUR_OF[scene.label_map_HW[window]]
        truth_HW[:, : CANVAS // 8] = IGNORED
        pixels.append(scene.image_HW3[window])
        truths.append(truth_HW)
    return padded_batch(pixels, TINY, torch.device("cpu")), torch.from_numpy(np.stack(truths))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a network that a plain loop has trained to tell colours."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = PerPixel(TINY).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)
    for _ in range(STEPS):
        pixels_B3HW, truth_BHW = batch_of(rng)
        logits_BKhw = class_logits(network(pixels_B3HW), TEXT_KD)
        logits_BKHW = interpolate(logits_BKhw, scale_factor=4, mode="bilinear")
        optimizer.zero_grad()
        cross_entropy(logits_BKHW, truth_BHW, ignore_index=IGNORED).backward()
        optimizer.step()
        schedule.step()
    directory = tmp_path_factory.mktemp("per-pixel")
    network.save(directory)
    return directory


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of scenes that it was not trained on, and the colour of every pixel by name."""
    folder = tmp_path_factory.mktemp("scenes")
    truths = {}
    for index in range(6):
        scene = make_scene(5_100, index)
        Image.fromarray(scene.image_HW3).save(folder / f"{index}.png")
        truths[f"{index}.png"] = COLOUR_OF[scene.label_map_HW]
    return folder, truths


def labels_of(directory, folder, precision="float16", clip=None, **changes):
    """Return the label maps of a folder by name; CLIP is asked where one is given."""
    listed = take_inventory(str(folder), ("png",)).images
    decoded = FetchDecode(128, 512, SourceSettings())(listed)
    proposed = conform(Propose("per-pixel", str(directory), 1, precision)(decoded), PROPOSED)
    stage = make_classify(
        clip or ClipSource.of("embedded", None),
        TEXT_KD.numpy(),
        **{
            "names": tuple(COLOURS), "ensemble_weight": 0.7, "divisor": 1, "precision": precision,
            "asks_clip": clip is not None, **changes,
        },
    )  # fmt: skip
    rows = conform(stage(proposed), ANNOTATED).to_pylist()
    check_rows(rows, whole=True)
    assert {row["n_proposals"] for row in rows} == {0}
    return {
        row["uri"].rpartition("/")[2]: decode_label_map(
            row["segments"], (row["height"], row["width"])
        )
        for row in rows
    }


def accuracy(found, truths):
    right = sum(int((found[name] == truths[name]).sum()) for name in truths)
    return right / sum(truth.size for truth in truths.values())


def test_one_trained_by_a_plain_loop_labels_new_scenes(trained, scenes):
    folder, truths = scenes
    found = labels_of(trained, folder)
    assert found.keys() == truths.keys()
    # Chance is 1 of 8, and the most frequent colour covers less than a third.
    assert accuracy(found, truths) > 0.7


@pytest.mark.parametrize("precision, agreement", [("float16", 0.999), ("uint8", 0.98)])
def test_the_precision_between_the_pools_hardly_moves_the_labels(
    trained, scenes, precision, agreement
):
    exact = labels_of(trained, scenes[0], "float32")
    assert accuracy(labels_of(trained, scenes[0], precision), exact) > agreement


@torch.no_grad()
@pytest.mark.parametrize(
    "size, grid", [((37, 51), (10, 13)), ((64, 96), (16, 24)), ((5, 1), (2, 1))]
)
def test_the_grid_covers_an_image_of_any_size(size, grid):
    torch.manual_seed(0)
    network = PerPixel(TINY).eval()
    assert network(torch.randn(2, 3, *size)).shape == (2, DIM, *grid)


def test_a_batch_equals_its_images_one_by_one(trained):
    model = find_proposer("per-pixel").load(str(trained), "cpu")
    assert isinstance(model, PixelEmbedder)
    pair = images((40, 50), (40, 50))
    for together, image in zip(model.embed_pixels(pair), pair, strict=True):
        torch.testing.assert_close(together, model.embed_pixels([image])[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"share a padded size, got \[\(40, 50\), \(41, 50\)\]"):
        model.embed_pixels(images((40, 50), (41, 50)))


def test_training_logits_are_scaled_cosines():
    embeds_BDhw = torch.randn(2, DIM, 3, 4)
    logits_BKhw = class_logits(embeds_BDhw, TEXT_KD)
    pixel_D = embeds_BDhw[1, :, 2, 3]
    expected_K = 100 * torch.cosine_similarity(pixel_D[None], TEXT_KD)
    torch.testing.assert_close(logits_BKhw[1, :, 2, 3], expected_K, atol=1e-4, rtol=1e-4)


def test_the_card_says_what_a_directory_holds(trained):
    card = find_proposer("per-pixel").describe(str(trained))
    assert (card.short_edge, card.long_edge, card.divisor) == (128, 512, 1)
    assert (card.embedding_dim, card.proposes_masks) == (DIM, False)
    assert card.weights_sha256
    assert find_proposer("maskformer").describe(None).proposes_masks


def test_without_weights_or_with_those_of_a_maskformer_it_is_refused(tmp_path):
    entry = find_proposer("per-pixel")
    for call in (entry.describe, lambda weights: entry.load(weights, "cpu")):
        with pytest.raises(ModelError, match="'per-pixel' needs proposer_weights: a directory"):
            call(None)
    backbone = TINY.backbone
    MaskFormer(MaskFormerConfig(backbone=backbone, fpn_channels=32)).save(tmp_path / "maskformer")
    with pytest.raises(
        ModelError, match=r"config\.json is no PerPixelConfig: hidden_channels: Ext"
    ):
        entry.describe(str(tmp_path / "maskformer"))
    PerPixel(TINY).save(tmp_path / "per-pixel")
    with pytest.raises(ModelError, match="is no MaskFormerConfig: architecture: Extra inputs"):
        find_proposer("maskformer").describe(str(tmp_path / "per-pixel"))


def test_clip_sees_the_whole_image_and_is_fused_at_every_pixel(trained, scenes, tmp_path):
    source = ClipSource(save_tiny_clip(tmp_path / "clip"))
    seen = (True, False) * 4
    found = labels_of(trained, scenes[0], "float32", clip=source, seen=seen, logit_scale=5.0)
    clip, model = Clip.load(source), find_proposer("per-pixel").load(str(trained), "cpu")
    alone = labels_of(trained, scenes[0], "float32")
    for name, labels_HW in found.items():
        with Image.open(scenes[0] / name) as file:
            image_HW3 = resize_image(file, resized_size((file.height, file.width), 128, 512))
        whole_1HW = torch.ones(1, *image_HW3.shape[:2])
        crop = crop_regions(
            torch.from_numpy(image_HW3.copy()).permute(2, 0, 1), whole_1HW, CropSettings(),
            side=clip.side, mean=clip.mean, std=clip.std,
        )  # fmt: skip
        assert crop.boxes_V4.tolist() == [[0, 0, image_HW3.shape[1], image_HW3.shape[0]]]
        clip_1K = region_probs(clip.encode_crops(crop.crops_V3SS, 1), TEXT_KD, 5.0)
        scorer = PixelScorer(TEXT_KD, clip_1K, torch.tensor(seen), 0.7)
        tiles = pixel_score_tiles(
            model.embed_pixels([image_HW3])[0], scorer, image_HW3.shape[:2], labels_HW.shape
        )
        expected = LabelMap.of(tiles, labels_HW.shape, torch.device("cpu"))
        assert (labels_HW == expected.classes_HW.numpy()).mean() > 0.999
    assert accuracy(found, alone) < 0.999  # CLIP did move some labels
