"""The MaskFormer module: batching, heads, and its directory of weights."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pipeline.models.maskformer import (
    BackboneConfig,
    MaskFormer,
    MaskFormerConfig,
    build_backbone,
)
from schemas.errors import ModelError

TINY = MaskFormerConfig(
    backbone=BackboneConfig(
        name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]}
    ),
    fpn_channels=32,
    mask_channels=32,
    hidden_channels=32,
    heads=4,
    feedforward_channels=64,
    decoder_layers=3,
    dropout=0.0,
    queries=5,
    query_head_channels=32,
    embedding_dim=16,
    seen_classes=("red circle",),
)


@pytest.fixture(scope="module")
def model() -> MaskFormer:
    torch.manual_seed(0)
    return MaskFormer(TINY).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_output_has_the_documented_shapes(model, pixels):
    output = model(pixels)
    assert output.mask_logits_BQhw.shape == (3, 5, 16, 24)
    assert output.query_embeds_BQD.shape == (3, 5, 16)
    torch.testing.assert_close(output.query_embeds_BQD.norm(dim=-1), torch.ones(3, 5))
    assert output.void_logits_BQ.abs().max() <= 100.001
    assert output.class_logits(torch.eye(16)[:7]).shape == (3, 5, 8)
    assert output.aux == ()


@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one(model, pixels):
    together = model(pixels)
    for index in range(len(pixels)):
        alone = model(pixels[index : index + 1])
        for name in ("mask_logits_BQhw", "query_embeds_BQD", "void_logits_BQ"):
            torch.testing.assert_close(
                getattr(together, name)[index], getattr(alone, name)[0], atol=1e-4, rtol=1e-4
            )


@torch.no_grad()
def test_evaluation_equals_the_last_layer_of_training(model, pixels):
    evaluated = model(pixels)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # its batch statistics are the one other difference between the modes
    trained = model(pixels)
    model.eval()
    assert len(trained.aux) == 2
    torch.testing.assert_close(trained.mask_logits_BQhw, evaluated.mask_logits_BQhw)
    torch.testing.assert_close(trained.query_embeds_BQD, evaluated.query_embeds_BQD)
    assert (trained.aux[0].query_embeds_BQD - evaluated.query_embeds_BQD).abs().max() > 1e-3


@torch.no_grad()
def test_the_scaled_cosine_with_no_object_is_not_rounded_by_autocast(model, pixels):
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixels)
    unit_D = torch.nn.functional.normalize(model.no_object, dim=0)
    expected = 100 * output.query_embeds_BQD @ unit_D
    torch.testing.assert_close(output.void_logits_BQ, expected, atol=1e-4, rtol=0)


def test_the_first_weights_are_drawn_as_in_the_reference():
    torch.manual_seed(0)
    weights = dict(MaskFormer(TINY).named_parameters())
    hidden = TINY.hidden_channels
    xavier, joint, plain = (6 / (2 * hidden)) ** 0.5, (6 / (4 * hidden)) ** 0.5, hidden**-0.5
    for name, bound in {
        "pixel_decoder.mask_projection.weight": (3 / (9 * TINY.fpn_channels)) ** 0.5,
        "pixel_decoder.fpn.stem.0.weight": (3 / (9 * 32)) ** 0.5,
        "pixel_decoder.fpn.layers.0.proj.0.weight": (3 / 32) ** 0.5,
        "input_projection.weight": (3 / 32) ** 0.5,
        "decoder_layers.1.self_attn.q_proj.weight": joint,
        "decoder_layers.1.encoder_attn.v_proj.weight": joint,
        "decoder_layers.1.encoder_attn.o_proj.weight": xavier,
        "decoder_layers.1.mlp.fc1.weight": (6 / (hidden + TINY.feedforward_channels)) ** 0.5,
        "mask_head.0.0.weight": plain,
        "query_head.1.0.weight": plain,
    }.items():
        value = weights[name].detach()
        assert 0.97 * bound < value.abs().max() <= bound, name
        assert value.std() == pytest.approx(bound / 3**0.5, rel=0.06), name  # of a uniform one
    for name in (
        "pixel_decoder.mask_projection", "input_projection", "decoder_layers.1.self_attn.q_proj",
        "decoder_layers.1.encoder_attn.o_proj",
    ):  # fmt: skip
        assert not weights[f"{name}.bias"].any(), name


@torch.no_grad()
def test_the_decoder_norm_is_not_fed_back(model, pixels):
    before = model(pixels).query_embeds_BQD
    inputs = []
    hook = model.decoder_layers[1].register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    model(pixels)
    model.decoder_norm.weight.mul_(3.0)
    after = model(pixels).query_embeds_BQD
    model.decoder_norm.weight.div_(3.0)
    hook.remove()
    torch.testing.assert_close(inputs[0], inputs[1])
    assert (before - after).abs().max() > 1e-3


@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(model, pixels, tmp_path):
    model.save(tmp_path)
    loaded = MaskFormer.load(tmp_path)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded(pixels).mask_logits_BQhw, model(pixels).mask_logits_BQhw)
    model.save(tmp_path, dtype=torch.float16)
    halves = MaskFormer.load(tmp_path)
    assert {value.dtype for value in halves.parameters()} == {torch.float32}


def test_every_weight_that_does_not_fit_is_named(model, tmp_path):
    model.save(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["stray"] = weights.pop("no_object")
    weights["queries.weight"] = weights["queries.weight"][:2].contiguous()
    save_file(weights, file)
    with pytest.raises(ModelError) as caught:
        MaskFormer.load(tmp_path)
    assert "missing no_object; unexpected stray; queries.weight has shape (2, 32)" in str(
        caught.value
    )


def test_truncated_weights_are_refused(model, tmp_path):
    model.save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ModelError, match=f"{file} is truncated or no safetensors file"):
        MaskFormer.load(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        MaskFormer.load(tmp_path)


def timm_backbone(name, **options):
    return build_backbone(BackboneConfig(name=name, options=options))


@torch.no_grad()
@pytest.mark.parametrize(
    "name, options, widths, sides",
    [
        ("resnet18", {"layers": [1, 1, 1, 1]}, [64, 128, 256, 512], [16, 8, 4, 2]),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, [8, 16, 24, 32],
         [16, 8, 4, 2]),
        ("dla34", {"levels": [1] * 6, "channels": [4, 4, 8, 8, 16, 16]}, [8, 8, 16, 16],
         [16, 8, 4, 2]),
        # It goes on to a stride of 64.
        ("selecsls42", {}, [128, 288, 480, 1024], [16, 8, 4, 2]),
        ("resnet26", {"output_stride": 16, "layers": [1, 1, 1, 1]}, [256, 512, 1024, 2048],
         [16, 8, 4, 4]),
    ],
)  # fmt: skip
def test_a_backbone_of_timm_gives_the_four_levels_from_stride_4_on(name, options, widths, sides):
    backbone, found = timm_backbone(name, **options)
    features = backbone.eval()(torch.zeros(1, 3, 64, 64))
    assert found == widths
    assert [feature.shape for feature in features] == [
        (1, width, side, side) for width, side in zip(widths, sides, strict=True)
    ]


@torch.no_grad()
def test_a_convnext_proposes_and_comes_back_from_its_directory(pixels, tmp_path):
    small = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    backbone = BackboneConfig(name="convnext_atto", options=small)
    model = MaskFormer(TINY.model_copy(update={"backbone": backbone})).eval()
    model.save(tmp_path)
    output = MaskFormer.load(tmp_path)(pixels)
    assert output.mask_logits_BQhw.shape == (3, 5, 16, 24)
    torch.testing.assert_close(output.mask_logits_BQhw, model(pixels).mask_logits_BQhw)


def test_a_seed_gives_the_weights_that_it_gives_to_timm_alone():
    options = TINY.backbone.options
    torch.manual_seed(3)
    found = timm_backbone("resnet18", **options)[0].state_dict()
    torch.manual_seed(3)
    expected = timm.create_model(
        "resnet18", features_only=True, out_indices=(1, 2, 3, 4), **options
    ).state_dict()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("resnet5", {}, r"backbone 'resnet5' with options \{\}: Unknown model .*has .*resnet50"),
        ("resnet18", {"layer": 1}, r"'resnet18' with options \{'layer': 1\}: .*argument 'layer'$"),
        ("levit_128s", {}, "'levit_128s' has feature maps of strides 16, 32, 64; there must be"),
        ("vit_tiny_patch16_224", {"depth": 3}, "'vit_tiny_patch16_224' has .* strides 16, 16, 16;"),
        ("swin_tiny_patch4_window7_224", {"depths": [1] * 4}, "'swin_tiny.* channels come last"),
    ],
)
def test_a_backbone_of_timm_that_does_not_fit_is_refused_by_name(name, options, message):
    with pytest.raises(ModelError, match=message):
        timm_backbone(name, **options)


def test_an_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match="'vgg'; there are timm"):
        MaskFormer(TINY.model_copy(update={"backbone": BackboneConfig(kind="vgg")}))
