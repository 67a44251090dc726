"""Universal segmenters of transformers: tiny random models of every real architecture."""

import json
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTokenizer,
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerImageProcessor,
    ViTConfig,
)

from pipeline.models import find_proposer
from pipeline.models.universal_segmenter import best_proposals, window_starts
from pipeline.resize import padded_size
from schemas.errors import ModelError
from tests.tiny_transformers import annotate_two_photos, one_thread, photo

__all__ = ["one_thread"]  # a fixture of every test here

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {
    "model_type": "swin",
    "image_size": 32,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "out_features": STAGES,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": STAGES,
}
DETR = {
    "model_type": "detr",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 6,
}
SHARED = {
    "backbone_config": SWIN,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 16,
    "num_queries": 6,
    "num_labels": 3,
}
EOMT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "num_upscale_blocks": 1,
    "num_blocks": 1,
    "num_queries": 6,
    "num_register_tokens": 1,
    "num_labels": 3,
}
KEEP = {"shortest_edge": 40, "longest_edge": 80}


def maskformer(backbone):
    config = MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=DETR,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=3,
    )
    return MaskFormerForInstanceSegmentation(config)


def mask2former():
    config = Mask2FormerConfig(feature_size=32, mask_feature_size=32, **SHARED)
    return Mask2FormerForUniversalSegmentation(config)


def oneformer():
    text = {
        "text_encoder_width": 16,
        "text_encoder_num_layers": 1,
        "text_encoder_vocab_size": 64,
        "task_seq_len": 24,
        "query_dec_layers": 1,
    }
    config = OneFormerConfig(conv_dim=32, mask_dim=32, **text, **SHARED)
    return OneFormerForUniversalSegmentation(config)


def letter_tokenizer():
    """Return a CLIP tokenizer that spells."""
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


MAKERS = {
    "maskformer-swin": lambda: [maskformer(SWIN), MaskFormerImageProcessor(size=KEEP)],
    "maskformer-resnet": lambda: [maskformer(RESNET), MaskFormerImageProcessor(size=KEEP)],
    "mask2former": lambda: [mask2former(), Mask2FormerImageProcessor(size=KEEP)],
    "mask2former-square": lambda: [
        mask2former(),
        Mask2FormerImageProcessor(size={"height": 64, "width": 64}),
    ],
    # As in the published ones, the processor names a list of classes that is elsewhere.
    "oneformer": lambda: [oneformer(), OneFormerImageProcessor(size=KEEP), letter_tokenizer()],
    "eomt": lambda: [
        EomtForUniversalSegmentation(EomtConfig(**EOMT)),
        EomtImageProcessor(size={"shortest_edge": 32, "longest_edge": 32}, do_pad=True),
    ],
    "eomt-windows": lambda: [
        EomtForUniversalSegmentation(EomtConfig(**EOMT)),
        EomtImageProcessor(size={"shortest_edge": 32, "longest_edge": None}, do_split_image=True),
    ],
    "eomt-dinov3": lambda: [
        EomtDinov3ForUniversalSegmentation(EomtDinov3Config(intermediate_size=16, **EOMT)),
        EomtImageProcessor(size={"shortest_edge": 32, "longest_edge": 32}, do_pad=True),
    ],
}
CARDS = {  # short edge, long edge, divisor
    "maskformer-swin": (40, 80, 32),
    "maskformer-resnet": (40, 80, 32),
    "mask2former": (40, 80, 32),
    "mask2former-square": (640, 2560, 1),
    "oneformer": (40, 80, 32),
    "eomt": (32, 32, 32),
    "eomt-windows": (32, 128, 32),
    "eomt-dinov3": (32, 32, 32),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function from an architecture's name to a directory with a tiny model of it."""
    root = tmp_path_factory.mktemp("segmenters")

    def save(name):
        directory = root / name
        if not directory.exists():
            torch.manual_seed(0)
            for part in MAKERS[name]():
                part.save_pretrained(directory)
            if name == "oneformer":
                change_json(directory / "preprocessor_config.json", class_info_file="ade20k.json")
        return str(directory)

    return save


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copy_of(directory, target):
    """Copy a checkpoint, to be spoilt."""
    return copytree(directory, target)


def load(weights):
    return find_proposer("transformers").load(weights, "cpu")


@pytest.mark.parametrize("name", MAKERS)
def test_every_architecture_is_described_from_its_configuration_alone(name, saved, tmp_path):
    lone = copy_of(saved(name), tmp_path / "lone")
    (lone / "model.safetensors").unlink()
    card = find_proposer("transformers").describe(str(lone))
    assert (card.short_edge, card.long_edge, card.divisor) == CARDS[name]
    assert card.embedding_dim is None
    assert card.licence == "unknown (see the model card)"
    assert len(card.weights_sha256) == 64
    assert card.weights_sha256 != find_proposer("transformers").describe(saved(name)).weights_sha256


@pytest.mark.parametrize("name", MAKERS)
def test_masks_cover_the_padded_image_and_do_not_depend_on_the_batch(name, saved):
    model, divisor = load(saved(name)), CARDS[name][2]
    sizes = [(40, 60), (40, 60)] if divisor == 1 else [(40, 60), (50, 40)]
    images = [photo(*size, seed=seed) for seed, size in enumerate(sizes)]
    together = model.propose(images)
    padded = padded_size(sizes[0], divisor)
    for image, found in zip(images, together, strict=True):
        assert (found.query_embeds_QD, found.void_logits_Q) == (None, None)
        count, height, width = found.mask_logits_Qhw.shape
        assert 1 <= count <= 100
        assert (height, width) == ((16, 16) if divisor == 1 else (padded[0] // 4, padded[1] // 4))
        assert found.mask_logits_Qhw.isfinite().all()
        (alone,) = model.propose([image])
        torch.testing.assert_close(alone.mask_logits_Qhw, found.mask_logits_Qhw, atol=1e-4, rtol=0)
    assert not together[0].mask_logits_Qhw.equal(together[1].mask_logits_Qhw)
    assert model.propose([]) == []


@pytest.mark.parametrize("name", MAKERS)
def test_every_architecture_annotates_two_photos(name, saved, tmp_path):
    edges = (48, 96) if name == "mask2former-square" else None
    assert min(annotate_two_photos("transformers", saved(name), tmp_path, edges)) >= 1


@pytest.mark.parametrize("name", ["maskformer-swin", "mask2former", "oneformer"])
def test_the_network_sees_what_the_checkpoints_processor_makes_padded_by_zeros(name, saved):
    model = load(saved(name))
    image = photo(40, 60)
    size = {"do_resize": False, "return_tensors": "pt"}
    task = {"task_inputs": ["panoptic"]} if name == "oneformer" else {}
    pixels = torch.zeros((1, 3, 64, 64))
    pixels[:, :, :40, :60] = MAKERS[name]()[1](images=[image], **size, **task)["pixel_values"]
    inside = torch.zeros((1, 64, 64), dtype=torch.int64)
    inside[:, :40, :60] = 1
    with torch.inference_mode():
        output = model._model(
            pixel_values=pixels,
            pixel_mask=inside,
            **({"task_inputs": model._task_tokens_T[None]} if task else {}),
        )
    (found,) = model.propose([image])
    expected = best_proposals(output.masks_queries_logits[0], output.class_queries_logits[0])
    torch.testing.assert_close(found.mask_logits_Qhw, expected.mask_logits_Qhw, atol=1e-5, rtol=0)


def test_eomt_sees_the_windows_that_its_processor_cuts(saved):
    model = load(saved("eomt-windows"))
    image = photo(32, 48)
    inputs = MAKERS["eomt-windows"]()[1](images=[image], return_tensors="pt")
    assert [offsets.tolist() for offsets in inputs["patch_offsets"]] == [[0, 0, 32], [0, 16, 48]]
    with torch.inference_mode():
        output = model._model(pixel_values=inputs["pixel_values"])
    (found,) = model.propose([image])
    grid_Qhw = found.mask_logits_Qhw
    assert grid_Qhw.shape == (12, 8, 16)
    for masks_Qhw, left in zip(output.masks_queries_logits, (0, 4), strict=True):
        for mask_hw in masks_Qhw:
            assert any(
                torch.allclose(grid_hw[:, left : left + 8], mask_hw, atol=1e-5)
                for grid_hw in grid_Qhw
            )
    assert (grid_Qhw[:, :, 12:] == -10).all()  # no image there


def test_eomt_pads_a_small_image_with_black_as_its_processor_does(saved):
    model = load(saved("eomt"))
    image = photo(20, 32)
    inputs = MAKERS["eomt"]()[1](images=[image], return_tensors="pt")
    with torch.inference_mode():
        output = model._model(pixel_values=inputs["pixel_values"])
    (found,) = model.propose([image])
    expected = best_proposals(output.masks_queries_logits[0], output.class_queries_logits[0])
    torch.testing.assert_close(found.mask_logits_Qhw, expected.mask_logits_Qhw, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "length, starts",
    [(1, [0]), (32, [0]), (33, [0, 4]), (48, [0, 16]), (64, [0, 32]), (70, [0, 20, 40])],
    ids=str,
)
def test_windows_cover_a_length_evenly_on_the_mask_grid(length, starts):
    assert window_starts(length, 32, 4) == starts
    assert starts[-1] + 32 >= length


def test_only_queries_that_are_surely_nothing_are_dropped_and_the_best_come_first():
    void_probs_Q = torch.tensor([0.5, 0.96, 0.1, 0.94])
    logits_QL = torch.stack([(1 - void_probs_Q).log(), void_probs_Q.log()], dim=1)
    masks_Qhw = torch.arange(4.0)[:, None, None].expand(4, 2, 3)
    assert best_proposals(masks_Qhw, logits_QL).mask_logits_Qhw[:, 0, 0].tolist() == [2, 0, 3]
    many = best_proposals(torch.zeros(150, 2, 3), torch.zeros(150, 4))
    assert many.mask_logits_Qhw.shape == (100, 2, 3)
    none = best_proposals(masks_Qhw[:0], logits_QL[:0])
    assert none.mask_logits_Qhw.shape == (0, 2, 3)


def test_the_licence_is_that_of_the_model_card(saved, tmp_path):
    directory = copy_of(saved("eomt"), tmp_path / "licensed")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert find_proposer("transformers").describe(str(directory)).licence == "mit"
    (directory / "README.md").write_text("---\nlicense: other\nlicense_name: sam-license\n---\n")
    assert find_proposer("transformers").describe(str(directory)).licence == "sam-license"


@pytest.mark.parametrize("name", ["mask2former", "mask2former-square", "oneformer", "eomt"])
@pytest.mark.parametrize("size", [(3, 60), (60, 3)], ids=str)
def test_an_image_of_any_size_has_masks(name, size, saved):
    (found,) = load(saved(name)).propose([photo(*size)])
    assert found.mask_logits_Qhw.isfinite().all()


def test_images_of_different_padded_sizes_do_not_go_together(saved):
    with pytest.raises(ValueError, match=r"share a padded size, got \[\(32, 32\), \(64, 32\)\]"):
        load(saved("maskformer-swin")).propose([photo(20, 20), photo(40, 20)])


def test_it_says_what_it_needs():
    with pytest.raises(ModelError, match="transformers needs weights: set proposer_weights"):
        find_proposer("transformers").describe(None)
    for nowhere in ("./nowhere", "nowhere", "a/b/c"):
        with pytest.raises(ModelError, match=f"{nowhere} is neither a directory nor a Hugging"):
            find_proposer("transformers").describe(nowhere)


def test_a_hub_id_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot read the configuration of org/name") as caught:
        find_proposer("transformers").describe("org/name@main")
    assert "\n" not in str(caught.value)


def test_a_model_of_the_hub_is_known_by_its_commit(saved, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--name"
    copytree(saved("eomt"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("org/name", f"org/name@{commit}"):
        card = find_proposer("transformers").describe(name)
        assert card.weights_sha256 == f"org/name@{commit}"
        assert card.licence == "unknown (see the model card)"
        assert len(load(name).propose([photo(32, 32)])) == 1


def test_a_directory_without_a_model_or_of_another_one_is_refused(tmp_path):
    with pytest.raises(ModelError, match=f"cannot read the configuration of {tmp_path}"):
        load(str(tmp_path))
    ViTConfig().save_pretrained(tmp_path)
    expected = "holds a 'vit' model; proposer transformers takes eomt, eomt_dinov3, mask2former"
    with pytest.raises(ModelError, match=expected):
        load(str(tmp_path))


def test_a_truncated_checkpoint_is_refused(saved, tmp_path):
    directory = copy_of(saved("eomt"), tmp_path / "short")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"cannot read the weights of {directory}: Safetensor"):
        load(str(directory))


def test_a_pickle_is_not_read(saved, tmp_path):
    directory = copy_of(saved("eomt"), tmp_path / "pickle")
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot read the weights of .*model\.safetensors"):
        load(str(directory))


def test_a_missing_weight_is_never_left_random(saved, tmp_path):
    directory = copy_of(saved("eomt"), tmp_path / "hole")
    weights = load_file(directory / "model.safetensors")
    del weights["query.weight"]
    weights["stray.weight"] = torch.zeros(1)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    expected = (
        r"not a whole EomtForUniversalSegmentation: .* 1 \(query.weight\); .* 1 \(stray.weight"
    )
    with pytest.raises(ModelError, match=expected):
        load(str(directory))


def test_a_weight_of_another_shape_is_refused(saved, tmp_path):
    directory = copy_of(saved("eomt"), tmp_path / "shape")
    change_json(directory / "config.json", num_queries=9)
    with pytest.raises(ModelError, match=r"query.weight of \(6, 16\) for \(9, 16\)"):
        load(str(directory))


def test_weights_beyond_the_model_are_named_in_a_warning(saved, tmp_path, caplog):
    directory = copy_of(saved("eomt"), tmp_path / "more")
    weights = load_file(directory / "model.safetensors") | {"stray.weight": torch.zeros(1)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    load(str(directory))
    assert f"{directory}: unused weights: 1 (stray.weight)" in caplog.messages


def test_a_oneformer_without_its_tokenizer_is_refused(saved, tmp_path):
    directory = copy_of(saved("oneformer"), tmp_path / "mute")
    for file in directory.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match=f"tokenizer of {directory}"):
        load(str(directory))


def test_an_eomt_whose_windows_are_not_whole_patches_is_refused(saved, tmp_path):
    directory = copy_of(saved("eomt"), tmp_path / "odd")
    change_json(directory / "config.json", image_size=33)
    with pytest.raises(ModelError, match="image size 33, patch size 8"):
        find_proposer("transformers").describe(str(directory))


def test_a_processor_whose_size_says_nothing_is_refused(saved, tmp_path):
    directory = copy_of(saved("maskformer-swin"), tmp_path / "sizeless")
    size = {"max_height": 40, "max_width": 40}
    change_json(directory / "preprocessor_config.json", size=size)
    with pytest.raises(ModelError, match=r"max_height.*a shortest_edge, or a height and a width"):
        find_proposer("transformers").describe(str(directory))
