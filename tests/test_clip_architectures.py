"""CLIPs of every family of open_clip: the same code loads, prompts and feeds them."""

import logging

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.models.clip import Clip, ClipSource, text_vectors
from pipeline.models.crops import CropSettings, crop_regions
from pipeline.prompts import LearnedPrompt, Prompts
from pipeline.segments import decode_label_map
from pipeline.stages.fetch import FetchDecode
from pipeline.stages.propose import Propose
from schemas.annotate_config import SourceSettings
from schemas.annotation import ANNOTATED, LABELLED, conform
from schemas.errors import ModelError
from schemas.vocabulary import Vocabulary
from tests.classify import make_classify
from tests.dataset_checks import check_rows
from tests.helpers import take_inventory
from tests.tiny_clips import (
    DIMS,
    FAMILIES,
    NATIVE,
    random_weights,
    save_small_clip,
    save_tokenizer,
    small_config,
    statistics_of,
)

CATS = Vocabulary.of(["cat", "dog", "tree"])
TEMPLATES = Prompts(("a photo of a {}.", "{}"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the name of a family's small CLIP, written once."""
    names = {}

    def save(family):
        if family not in names:
            names[family] = save_small_clip(family, tmp_path_factory.mktemp("clip") / family)
        return names[family]

    return save


@pytest.fixture
def built_in(monkeypatch):
    """Put a small config in the place of open_clip's own of a family."""

    def put(family):
        config = small_config(family)
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, family, config)
        return config

    return put


def crops_of(clip, count=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, clip.side, clip.side, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_open_clip(saved, family):
    source = ClipSource(saved(family))
    assert source.describe().embedding_dim == DIMS
    clip = Clip.load(source)
    model = open_clip.create_model(source.name).eval()
    tokenizer = open_clip.get_tokenizer(source.name)
    crops = crops_of(clip)
    with torch.inference_mode():
        image_ND = torch.nn.functional.normalize(model.encode_image(crops), dim=1)
        text_ND = torch.nn.functional.normalize(model.encode_text(tokenizer(["a cat"])), dim=1)
    torch.testing.assert_close(clip.encode_crops(crops, batch=2), image_ND, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(clip.encode_text(["a cat"]), text_ND.numpy(), atol=1e-5)

    text_KD = text_vectors(clip, CATS, TEMPLATES)
    assert text_KD.shape == (3, DIMS)
    np.testing.assert_allclose(np.linalg.norm(text_KD, axis=1), 1, atol=1e-6)
    assert np.abs(text_KD[0] - text_KD[1]).max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_size_and_statistics_are_the_models_own(saved, family):
    clip = Clip.load(ClipSource(saved(family)))
    own = open_clip.get_model_config(family)["vision_cfg"]["image_size"]
    assert clip.side == own
    statistics = statistics_of(family)
    if statistics:
        assert (list(clip.mean), list(clip.std)) == (statistics["mean"], statistics["std"])


@pytest.mark.parametrize("precision, tolerance", [("bf16", 5e-4), ("fp16", 2e-5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_agrees(saved, family, precision, tolerance):
    full = Clip.load(ClipSource(saved(family)))
    half = Clip.load(ClipSource(saved(family), precision=precision))
    dtypes = {value.dtype for value in half.model.visual.parameters()}
    assert dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    crops = crops_of(full)
    vectors_ND = half.encode_crops(crops, batch=5)
    assert vectors_ND.dtype == torch.float32
    cosines_N = (full.encode_crops(crops, batch=5) * vectors_ND).sum(dim=1)
    assert 1 - cosines_N.min() < tolerance
    text_KD = text_vectors(half, CATS, TEMPLATES)
    assert text_KD.dtype == np.float32
    assert 1 - (text_vectors(full, CATS, TEMPLATES) * text_KD).sum(axis=1).min() < tolerance
    assert half.logit_scale == full.logit_scale


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two images, red on one side and black on the other."""
    folder = tmp_path_factory.mktemp("scenes")
    for name, half in (("left", slice(None, 60)), ("right", slice(60, None))):
        pixels_HW3 = np.zeros((60, 120, 3), dtype=np.uint8)
        pixels_HW3[:, half] = (200, 30, 40)
        Image.fromarray(pixels_HW3).save(folder / f"{name}.png")
    return folder


def colours(clip):
    """Class vectors of red and black: the CLIP's own vectors of the halves of an image."""
    left_HW = (torch.arange(96) < 48).expand(48, 96)
    image_3HW = torch.tensor([200, 30, 40], dtype=torch.uint8)[:, None, None] * left_HW
    cut = crop_regions(
        image_3HW,
        torch.stack([left_HW, ~left_HW]).float(),
        CropSettings(),
        side=clip.side,
        mean=clip.mean,
        std=clip.std,
    )
    return clip.encode_crops(cut.crops_V3SS, 2).numpy()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_classify_stage_tells_red_from_black(saved, scenes, family, precision, caplog):
    source = ClipSource(saved(family), precision=precision)
    text_KD = colours(Clip.load(source))
    stage = make_classify(source, text_KD, ("red", "black"), crop_batch=3)
    fetch = FetchDecode(48, 96, SourceSettings())
    propose = Propose("felzenszwalb", None, 32, "float16")
    with caplog.at_level(logging.WARNING, "pipeline"):
        decoded = fetch(take_inventory(str(scenes), ("png",)).images)
        table = conform(stage(propose(decoded)), ANNOTATED)
    rows = table.to_pylist()
    check_rows(rows, whole=True)
    assert [row["status"] for row in rows] == [LABELLED, LABELLED]
    for row, left in zip(rows, (0, 1), strict=True):
        label_map_HW = decode_label_map(row["segments"], (60, 120))
        assert (label_map_HW[:, :52] == left).all()
        assert (label_map_HW[:, 68:] == 1 - left).all()
    # No batch failed and was tried image by image.
    assert [record for record in caplog.records if record.name.startswith("pipeline")] == []


# Swin's windows would have to divide the side, and timm resizes its positions with a warning.
@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if not name.startswith(("RN50", "swin"))]
)
def test_another_side_is_taken(saved, family):
    clip = Clip.load(ClipSource(saved(family), side=112))
    assert clip.side == 112
    assert clip.encode_crops(crops_of(clip, 2), batch=2).shape == (2, DIMS)


def test_a_resnet_has_one_side_only(saved):
    assert ClipSource(saved("RN50"), side=224).describe().embedding_dim == DIMS
    source = ClipSource(saved("RN50"), side=288)
    for attempt in (source.describe, lambda: Clip.load(source)):
        with pytest.raises(ModelError, match="side of 224; crop_side is 288, and must be 224"):
            attempt()


@pytest.mark.parametrize("family", ["ViT-B-16", "convnext_base_w"])
def test_an_input_that_is_not_square_is_refused(tmp_path, family):
    name = save_small_clip(family, tmp_path, image_size=[64, 96])
    for attempt in (ClipSource(name).describe, lambda: Clip.load(ClipSource(name, side=64))):
        with pytest.raises(ModelError, match="takes images of 64 x 96; crops are square"):
            attempt()


def test_a_square_given_as_a_pair_is_square(tmp_path):
    clip = Clip.load(ClipSource(save_small_clip("ViT-B-16", tmp_path, image_size=[64, 64])))
    assert clip.side == 64


@pytest.mark.parametrize("family", sorted(NATIVE.keys() - {"ViT-H-14-CLIPA"}))
def test_an_architecture_with_a_file_gives_what_its_folder_gives(saved, built_in, tmp_path, family):
    file = tmp_path / "weights.safetensors"
    save_file(random_weights(built_in(family)), file)
    clip, expected = Clip.load(ClipSource(family, str(file))), Clip.load(ClipSource(saved(family)))
    assert (clip.side, clip.mean) == (expected.side, expected.mean)
    crops = crops_of(clip, 2)
    torch.testing.assert_close(clip.encode_crops(crops, 2), expected.encode_crops(crops, 2))
    np.testing.assert_allclose(clip.encode_text(["cat"]), expected.encode_text(["cat"]), atol=1e-6)


@pytest.mark.parametrize(
    "family, mean",
    [
        ("ViT-B-16-SigLIP", 0.5),
        ("ViT-B-16-SigLIP2", 0.5),
        ("MobileCLIP-S1", 0.0),
        ("ViT-H-14-CLIPA", 0.485),
        ("ViT-B-16", 0.48145466),
        ("ViT-L-14", None),  # one of its tags has 0.5, the others OpenAI's
        ("ViT-L-14-280", None),  # has no tags
    ],
)
def test_a_file_has_the_statistics_of_its_architectures_tags(family, mean):
    overrides = ClipSource(family, "weights.safetensors").overrides()
    if mean is None:
        assert overrides == {}  # open_clip's default, which are OpenAI's
    else:
        assert overrides["force_preprocess_cfg"]["mean"][0] == mean


def test_a_siglip_from_a_file_is_fed_with_its_own_statistics(built_in, tmp_path):
    config = built_in("ViT-B-16-SigLIP")
    for name in ("hf_tokenizer_name", "tokenizer_kwargs"):  # that one is to be had on the hub only
        del config["text_cfg"][name]
    config["text_cfg"]["hf_tokenizer_name"] = str(save_tokenizer(tmp_path / "tokenizer"))
    file = tmp_path / "weights.pt"
    torch.save(random_weights(config), file)
    source = ClipSource("ViT-B-16-SigLIP", str(file))
    clip = Clip.load(source)
    assert (clip.mean, clip.std) == ((0.5,) * 3, (0.5,) * 3)
    # open_clip by itself would take OpenAI's.
    model = open_clip.create_model("ViT-B-16-SigLIP", pretrained=str(file))
    assert model.visual.image_mean[0] == 0.48145466


@pytest.mark.parametrize("is_quick", [True, False])
def test_a_tag_brings_the_activation_that_it_was_trained_with(
    monkeypatch, built_in, tmp_path, is_quick
):
    weights = random_weights(built_in("ViT-B-16"))
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    tag = {"file": str(file), "quick_gelu": is_quick, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED["ViT-B-16"], "openai", tag)
    clip = Clip.load(ClipSource("ViT-B-16", "openai"))
    kinds = {type(module).__name__ for module in clip.model.modules()}
    assert ("QuickGELU" in kinds, "GELU" in kinds) == (is_quick, not is_quick)
    assert (clip.mean, clip.std) == ((0.5,) * 3, (0.25,) * 3)


def test_the_bias_of_a_siglip_does_not_change_a_softmax_over_classes(saved):
    clip = Clip.load(ClipSource(saved("ViT-B-16-SigLIP")))
    assert clip.model.logit_bias == -10
    image_ND = clip.encode_crops(crops_of(clip, 2), 2)
    text_KD = torch.from_numpy(text_vectors(clip, CATS, TEMPLATES))
    logits_NK = clip.logit_scale * image_ND @ text_KD.T
    torch.testing.assert_close((logits_NK + clip.model.logit_bias).softmax(1), logits_NK.softmax(1))


def prompt_like(clip, text):
    """Return a learned prompt whose vectors are CLIP's own of `text`, and the text itself."""
    tower = getattr(clip.model, "text", clip.model)
    tokens = clip._tokenizer([text])[0]
    vectors = tower.token_embedding.weight[tokens[1 : tokens.argmax()]].float().numpy()
    return LearnedPrompt.of({"prefix_prompt": vectors}, "here")


@pytest.mark.parametrize(
    "family", ["ViT-B-16", "RN50", "convnext_base_w", "EVA02-B-16", "PE-Core-T-16-384"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_learned_prompt_stands_before_any_text_tower_like_openais(saved, family, precision):
    clip = Clip.load(ClipSource(saved(family), precision=precision))
    found = clip.encode_names(["cat", "old sofa"], prompt_like(clip, "a photo of a"))
    written = clip.encode_text(["a photo of a cat.", "a photo of a old sofa."])
    np.testing.assert_allclose(found, written, atol=1e-6)


@pytest.mark.parametrize(
    "family, tower",
    [
        ("ViT-B-16-SigLIP", "TextTransformer"),
        ("coca_ViT-B-32", "TextTransformer"),
        ("roberta-ViT-B-32", "HFTextEncoder"),
    ],
)
def test_a_text_tower_that_reads_elsewhere_takes_no_learned_prompt(saved, family, tower):
    clip = Clip.load(ClipSource(saved(family)))
    prompt = LearnedPrompt.of({"prefix_prompt": np.zeros((2, 32))}, "here")
    with pytest.raises(ModelError, match=rf"at the end token.*this one \({tower}\) does not"):
        clip.encode_names(["cat"], prompt)


@pytest.mark.parametrize("family", ["ViT-B-16", "ViT-B-16-SigLIP"])
def test_weights_of_another_family_are_refused_with_a_key(family, tmp_path):
    name = save_small_clip(family, tmp_path)
    save_file(random_weights(small_config("RN50")), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ModelError, match=f"cannot load clip '{name}'.*visual") as caught:
        Clip.load(ClipSource(name))
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_without_its_tokenizer_is_refused(tmp_path):
    name = save_small_clip("ViT-B-16-SigLIP", tmp_path)
    for file in tmp_path.glob("tokenizer*.json"):
        file.unlink()
    with pytest.raises(ModelError, match=f"cannot load clip '{name}' with its own weights"):
        Clip.load(ClipSource(name))


@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_architecture_of_open_clip_has_a_config_that_is_understood(name):
    assert ClipSource(name, "any").config()["embed_dim"] in range(128, 2049)
