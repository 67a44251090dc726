"""SAM 2 and SAM 3 as proposers: tiny random models of the real architectures."""

import json
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam3ImageProcessor,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3VideoConfig,
    Sam3VideoModel,
)

from pipeline.masks import mask_probs
from pipeline.models import find_proposer
from pipeline.models.sam import MaskGeneration, Sam, point_grid, stability, without_repeats
from schemas.errors import ModelError
from tests.tiny_transformers import annotate_two_photos, one_thread, photo

__all__ = ["one_thread"]  # a fixture of every test here

DECODER = {
    "hidden_size": 16,
    "mlp_dim": 16,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
    "num_hidden_layers": 1,
}
FEATURE_SIZES = [[16, 16], [8, 8], [4, 4]]
MEMORY = {
    "memory_attention_hidden_size": 16,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 16,
    "memory_attention_rope_feat_sizes": [4, 4],
    "memory_encoder_hidden_size": 16,
    "memory_encoder_output_channels": 8,
    "mask_downsampler_embed_dim": 16,
    "memory_fuser_embed_dim": 16,
    "memory_fuser_intermediate_dim": 16,
}
SAM2 = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [64, 64],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [4, 4, 4, 4],
            "global_attention_blocks": [3],
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": FEATURE_SIZES,
        "fpn_hidden_size": 16,
    },
    "prompt_encoder_config": {
        "hidden_size": 16,
        "image_size": 64,
        "patch_size": 16,
        "mask_input_channels": 4,
    },
    "mask_decoder_config": DECODER,
}
SAM3 = {
    "vision_config": {
        "model_type": "sam3_vision_model",
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "window_size": 2,
            "global_attn_indexes": [1],
            "pretrain_image_size": 28,
        },
        "backbone_feature_sizes": FEATURE_SIZES,
        "fpn_hidden_size": 16,
    },
    "prompt_encoder_config": {
        "hidden_size": 16,
        "image_size": 56,
        "patch_size": 14,
        "mask_input_channels": 4,
    },
    "mask_decoder_config": DECODER,
}
SMALL = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
DETECTOR = {
    "model_type": "sam3",
    "vision_config": SAM3["vision_config"],
    "text_config": {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
    },
    "geometry_encoder_config": SMALL,
    "detr_encoder_config": SMALL,
    "detr_decoder_config": {**SMALL, "num_queries": 4},
    "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2},
}
TRACKER = {"model_type": "sam3_tracker_video", "image_size": 56, **SAM3, **MEMORY}

# For each family: the model that is used, and the kind of checkpoint that is published.
MAKERS = {
    "sam2": lambda: Sam2Model(Sam2Config(**SAM2)),
    "sam2-video": lambda: Sam2VideoModel(Sam2VideoConfig(image_size=64, **SAM2, **MEMORY)),
    "sam3": lambda: Sam3TrackerModel(Sam3TrackerConfig(**SAM3)),
    "sam3-video": lambda: Sam3VideoModel(
        Sam3VideoConfig(
            detector_config=DETECTOR,
            tracker_config={**TRACKER, "memory_attention_num_attention_heads": 1},
        )
    ),
}
SIDES = {"sam2": 64, "sam3": 56}


def family(name):
    return name.partition("-")[0]


def make_sure(model):
    """Make a random model certain of its masks, so that the default thresholds keep some."""
    named = dict(model.named_modules())
    decoder = named.get("tracker_model.mask_decoder") or named["mask_decoder"]
    with torch.no_grad():
        decoder.iou_prediction_head.proj_out.bias.fill_(4.0)
        for part in (decoder.upscale_conv1, decoder.upscale_conv2):
            part.weight.normal_()
        for parameter in decoder.output_hypernetworks_mlps.parameters():
            parameter.normal_(std=4.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function from an architecture's name to a directory with a tiny model of it."""
    root = tmp_path_factory.mktemp("sam")

    def save(name):
        directory = root / name
        if not directory.exists():
            torch.manual_seed(0)
            model = MAKERS[name]()
            make_sure(model)
            model.save_pretrained(directory)
            if name == "sam3-video":
                # transformers 5.23 writes the tracker's prefix twice; the published file has one.
                weights = {key: value.contiguous() for key, value in model.state_dict().items()}
                save_weights(weights, directory)
            side = SIDES[family(name)]
            processor = Sam2ImageProcessor if family(name) == "sam2" else Sam3ImageProcessor
            processor(size={"height": side, "width": side}).save_pretrained(directory)
        return str(directory)

    return save


def save_weights(weights, directory):
    copies = {key: value.clone() for key, value in weights.items()}  # some share their memory
    save_file(copies, directory / "model.safetensors", metadata={"format": "pt"})


def load(name, weights):
    return find_proposer(family(name)).load(weights, "cpu")


FEW = MaskGeneration(points_per_side=4, points_per_batch=5)


def few_points(name, weights):
    sam = load(name, weights)
    return Sam(sam._model, sam._processor, FEW)


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_described_from_its_configuration_alone(name, saved, tmp_path):
    directory = copytree(saved(name), tmp_path / "lone")
    (directory / "model.safetensors").unlink()
    card = find_proposer(family(name)).describe(str(directory))
    side = SIDES[family(name)]
    assert (card.short_edge, card.long_edge, card.divisor) == (side, side, 1)
    assert (card.embedding_dim, card.licence) == (None, "unknown (see the model card)")
    assert len(card.weights_sha256) == 64


@pytest.mark.parametrize("name", MAKERS)
def test_masks_cover_the_image_and_do_not_depend_on_the_batch(name, saved):
    model = few_points(name, saved(name))
    images = [photo(30, 50, seed=1), photo(30, 50, seed=2)]
    together = model.propose(images)
    for image, found in zip(images, together, strict=True):
        assert (found.query_embeds_QD, found.void_logits_Q) == (None, None)
        count, *grid = found.mask_logits_Qhw.shape
        assert 1 <= count <= 48 and grid == [16, 16]
        assert found.mask_logits_Qhw.isfinite().all()
        (alone,) = model.propose([image])
        torch.testing.assert_close(
            alone.mask_logits_Qhw, found.mask_logits_Qhw, atol=1e-3, rtol=1e-5
        )
    assert not together[0].mask_logits_Qhw.equal(together[1].mask_logits_Qhw)
    assert model.propose([]) == []


@pytest.mark.parametrize("name", ["sam2", "sam3"])
def test_two_photos_are_annotated_with_the_default_settings(name, saved, tmp_path):
    counts = annotate_two_photos(name, saved(name), tmp_path)
    assert all(1 <= count <= 100 for count in counts)


@pytest.mark.parametrize("name", MAKERS)
def test_a_mask_is_that_of_the_library_for_the_same_point(name, saved):
    sam = load(name, saved(name))
    image, side = photo(30, 50), SIDES[family(name)]
    one = MaskGeneration(points_per_side=1, min_predicted_iou=-9, min_stability=-1, max_box_iou=2)
    (found,) = Sam(sam._model, sam._processor, one).propose([image])
    inputs = sam._processor(images=[image], return_tensors="pt")
    centre = torch.tensor([[[[side / 2, side / 2]]]])
    with torch.inference_mode():
        output = sam._model(pixel_values=inputs["pixel_values"], input_points=centre)
    order = output.iou_scores[0, 0].argsort(descending=True)
    (expected,) = sam._processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], binarize=False
    )
    expected_QHW = expected[0, order]
    expected_QHW = expected_QHW[(output.pred_masks[0, 0, order] > 0).flatten(1).any(dim=1)]
    actual_QHW = mask_probs(found.mask_logits_Qhw, (30, 50), (30, 50))
    torch.testing.assert_close(actual_QHW, expected_QHW.sigmoid(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 60), (60, 3)], ids=str)
def test_an_image_of_any_size_has_masks(size, saved):
    (found,) = few_points("sam2", saved("sam2")).propose([photo(*size)])
    assert found.mask_logits_Qhw.isfinite().all()


def test_an_image_of_which_no_mask_is_good_has_no_proposal(saved):
    sam = load("sam2", saved("sam2"))
    strict = MaskGeneration(points_per_side=2, min_stability=2.0)
    (found,) = Sam(sam._model, sam._processor, strict).propose([photo(30, 50)])
    assert found.mask_logits_Qhw.shape == (0, 16, 16)


def test_points_are_x_y_and_reach_every_part_of_the_square():
    points_P2 = point_grid(8, 2)
    assert points_P2.tolist() == [[2, 2], [6, 2], [2, 6], [6, 6]]
    assert len(point_grid(1024, 32)) == 1024


def test_stability_compares_the_areas_at_two_thresholds():
    logits_Mhw = torch.tensor([[[3.0, 3.0, 0.5, -3.0]], [[-3.0, -3.0, -3.0, -3.0]]])
    torch.testing.assert_close(stability(logits_Mhw, 1.0), torch.tensor([2 / 3, 0.0]))


def test_of_masks_with_one_box_only_the_best_scored_is_kept():
    logits_Mhw = torch.full((6, 4, 4), -5.0)
    logits_Mhw[0, :2, :2] = 1.0
    logits_Mhw[1, :2, :2] = 2.0
    logits_Mhw[2, 3, 3] = 3.0  # one cell
    logits_Mhw[3, :, :2] = 4.0  # overlaps by half
    logits_Mhw[4, 3, 3] = 5.0  # the same cell
    scores_M = torch.tensor([0.8, 0.9, 0.85, 0.95, 0.81, 1.0])  # the last mask is empty
    kept_Mhw = without_repeats(logits_Mhw, scores_M, MaskGeneration())
    assert kept_Mhw.amax(dim=(1, 2)).tolist() == [4, 2, 3]
    capped_Mhw = without_repeats(logits_Mhw, scores_M, MaskGeneration(max_proposals=1))
    assert capped_Mhw.amax(dim=(1, 2)).tolist() == [4]


@pytest.mark.parametrize("name", ["sam2", "sam3"])
def test_it_says_what_it_needs(name):
    with pytest.raises(ModelError, match=f"proposer {name} needs weights: set proposer_weights"):
        find_proposer(name).describe(None)


@pytest.mark.parametrize(
    "name, other, expected",
    [
        ("sam2", "sam3", "holds a 'sam3_tracker' model; proposer sam2 takes sam2, sam2_video"),
        ("sam3", "sam2", "holds a 'sam2' model; proposer sam3 takes sam3_tracker, sam3_video"),
    ],
)
def test_the_other_sam_is_refused(name, other, expected, saved):
    with pytest.raises(ModelError, match=expected):
        load(name, saved(other))
    with pytest.raises(ModelError, match=expected):
        find_proposer(name).describe(saved(other))


def test_a_truncated_checkpoint_is_refused(saved, tmp_path):
    directory = copytree(saved("sam2"), tmp_path / "short")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"cannot read the weights of {directory}: Safetensor"):
        load("sam2", str(directory))


@pytest.mark.parametrize("name", MAKERS)
def test_a_missing_weight_is_never_left_random(name, saved, tmp_path):
    directory = copytree(saved(name), tmp_path / "hole")
    weights = load_file(directory / "model.safetensors")
    (lost,) = [key for key in weights if key.endswith("mask_decoder.iou_token.weight")]
    del weights[lost]
    save_weights(weights, directory)
    with pytest.raises(ModelError, match=r"is not a whole Sam.* 1 \(mask_decoder.iou_token.weight"):
        load(name, str(directory))


def test_a_processor_for_another_square_is_refused(saved, tmp_path):
    directory = copytree(saved("sam2"), tmp_path / "square")
    path = directory / "preprocessor_config.json"
    changed = json.loads(path.read_text()) | {"size": {"height": 32, "width": 64}}
    path.write_text(json.dumps(changed))
    expected = "the model sees 64 x 64 pixels, its image processor makes 32 x 64"
    with pytest.raises(ModelError, match=expected):
        find_proposer("sam2").describe(str(directory))
