"""The authors' checkpoints, on small random ones in their layout: reading, converting, refusing."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from jobs.weights import convert, inspect
from pipeline.models.checkpoint_file import read_weights
from pipeline.models.checkpoints import Untold, load_proposer, take_apart
from pipeline.models.clip import Clip, ClipSource, text_vectors
from pipeline.models.maskformer import BackboneConfig, MaskFormer, MaskFormerConfig, build_backbone
from pipeline.models.per_pixel import PerPixel
from pipeline.prompts import LearnedPrompt, load_prompts
from schemas.errors import ModelError, OutputError, SettingsError
from schemas.vocabulary import Vocabulary
from schemas.weights_config import WeightsConvertConfig, WeightsInspectConfig

HIDDEN, FPN, MASK, QUERIES, DIM, TEXT = 16, 32, 24, 5, 8, 16
BLOCKS, WIDTHS, OUTS = (1, 2, 1, 3), (4, 6, 8, 10), (16, 20, 24, 36)
CLIP = {
    "embed_dim": DIM,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"width": TEXT, "heads": 2, "layers": 1},
}
PIXELS = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(7))


def shapes_of_backbone(stem: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        found[f"backbone.{name}.weight"] = (out, into, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"backbone.{name}.norm.{part}"] = (out,)

    conv("stem.conv1", stem // 2, 3, 3)
    conv("stem.conv2", stem // 2, stem // 2, 3)
    conv("stem.conv3", stem, stem // 2, 3)
    into = stem
    for stage, (blocks, width, out) in enumerate(zip(BLOCKS, WIDTHS, OUTS, strict=True), start=2):
        for block in range(blocks):
            conv(f"res{stage}.{block}.conv1", width, into, 1)
            conv(f"res{stage}.{block}.conv2", width, width, 3)
            conv(f"res{stage}.{block}.conv3", out, width, 1)
            if block == 0:
                conv(f"res{stage}.{block}.shortcut", out, into, 1)
            into = out
    return found


def shapes_of_head(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"clip_adapter.non_object_embedding": (1, DIM)}
    decoder = "sem_seg_head.pixel_decoder."
    for level in (1, 2, 3, 4):
        into = OUTS[3] if level == 4 else FPN
        found[f"{decoder}layer_{level}.weight"] = (FPN, into, 3, 3)
        names = [f"layer_{level}"]
        if level < 4:
            found[f"{decoder}adapter_{level}.weight"] = (FPN, OUTS[level - 1], 1, 1)
            names.append(f"adapter_{level}")
        for name in names:
            found |= {f"{decoder}{name}.norm.{part}": (FPN,) for part in ("weight", "bias")}
    found |= {f"{decoder}mask_features.weight": (MASK, FPN, 3, 3)}
    found |= {f"{decoder}mask_features.bias": (MASK,)}
    predictor = "sem_seg_head.predictor."

    def linear(name: str, out: int, into: int) -> None:
        found[f"{predictor}{name}.weight"] = (out, into)
        found[f"{predictor}{name}.bias"] = (out,)

    for layer in range(layers):
        name = f"transformer.decoder.layers.{layer}"
        for attention in ("self_attn", "multihead_attn"):
            found[f"{predictor}{name}.{attention}.in_proj_weight"] = (3 * HIDDEN, HIDDEN)
            found[f"{predictor}{name}.{attention}.in_proj_bias"] = (3 * HIDDEN,)
            linear(f"{name}.{attention}.out_proj", HIDDEN, HIDDEN)
        linear(f"{name}.linear1", 40, HIDDEN)
        linear(f"{name}.linear2", HIDDEN, 40)
        for norm in ("norm1", "norm2", "norm3"):
            found |= {f"{predictor}{name}.{norm}.{part}": (HIDDEN,) for part in ("weight", "bias")}
    found |= {
        f"{predictor}transformer.decoder.norm.{part}": (HIDDEN,) for part in ("weight", "bias")
    }
    found[f"{predictor}query_embed.weight"] = (QUERIES, HIDDEN)
    found[f"{predictor}input_proj.weight"] = (HIDDEN, OUTS[3], 1, 1)
    found[f"{predictor}input_proj.bias"] = (HIDDEN,)
    linear("class_embed.layers.0", 28, HIDDEN)
    linear("class_embed.layers.1", DIM, 28)
    linear("mask_embed.layers.0", HIDDEN, HIDDEN)
    linear("mask_embed.layers.1", HIDDEN, HIDDEN)
    linear("mask_embed.layers.2", MASK, HIDDEN)
    return found


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    """A whole checkpoint of a separate-adapter run: proposer, CLIP, and a learned prompt."""
    noise = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=noise) * 0.2 + (name.endswith("running_var") * 2.0)
        for name, shape in {**shapes_of_backbone(8), **shapes_of_head(2)}.items()
    }
    weights = {k: v.abs() if k.endswith("running_var") else v for k, v in weights.items()}
    torch.manual_seed(0)
    clip = open_clip.CLIP(**CLIP).state_dict()
    weights |= {f"clip_adapter.clip_model.{name}": value for name, value in clip.items()}
    weights["clip_adapter.clip_model.token_embedding.weight"] = clip[
        "token_embedding.weight"
    ].half()
    learner = "clip_adapter.prompt_learner."
    for name, count in (("prefix_prompt", 3), ("start_signal", 1), ("end_signal", 1)):
        weights[learner + name] = torch.randn(count, TEXT, generator=noise)
    weights["clip_adapter.pixel_mean"] = torch.tensor([120.0, 110.0, 100.0]).reshape(1, 3, 1, 1)
    weights["clip_adapter.pixel_std"] = torch.tensor([60.0, 61.0, 62.0]).reshape(1, 3, 1, 1)
    weights["criterion.empty_weight"] = torch.ones(7)
    return weights


def settings(checkpoint: Path, output: Path, **changes: object) -> WeightsConvertConfig:
    told = {"heads": 4, "clip_text_heads": 2, "clip_vision_heads": 2}
    return WeightsConvertConfig(checkpoint=checkpoint, output=output, **{**told, **changes})


def load(path: Path) -> MaskFormer:
    return load_proposer(take_apart(read_weights(path)), Untold(heads=4), str(path))


def with_versions(weights: dict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """What a module's own state_dict has beside its weights."""
    versioned = OrderedDict(weights)
    versioned._metadata = OrderedDict({"": {"version": 1}, "sem_seg_head": {"version": 2}})
    return versioned


@pytest.fixture(scope="module")
def safetensors_file(reference, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_file(reference, file)
    return file


@pytest.fixture(scope="module")
def expected(safetensors_file) -> torch.Tensor:
    with torch.no_grad():
        return load(safetensors_file)(PIXELS).mask_logits_BQhw


def first_layout(weights):
    return {name.replace(".pixel_decoder.", "."): value for name, value in weights.items()}


def doubled(weights):
    twice = ".pixel_decoder.pixel_decoder."
    return {name.replace(".pixel_decoder.", twice): value for name, value in weights.items()}


def as_arrays(weights):
    return {name: value.numpy() for name, value in weights.items()}


def prefixed(weights):
    return {f"module.{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    "arrange",
    [with_versions, dict, first_layout, doubled, as_arrays, prefixed],
    ids=["module versions", "none", "first layout", "doubled", "numpy arrays", "data parallel"],
)
@torch.no_grad()
def test_every_kind_of_pth_gives_the_same_network(arrange, reference, expected, tmp_path):
    file = tmp_path / "model.pth"
    scheduler = {"base_lrs": [1e-4], "last_epoch": 9, "best": np.float64(0.5)}
    entries = {"optimizer": {"state": {}}, "scheduler": scheduler, "iteration": 9}
    torch.save({"model": arrange(reference), **entries}, file)
    found = read_weights(file)
    assert (found.iteration, found.entries) == (9, ("optimizer", "scheduler", "iteration"))
    assert found.has_versions == (arrange is with_versions)
    torch.testing.assert_close(load(file)(PIXELS).mask_logits_BQhw, expected, atol=0, rtol=0)


def test_structure_is_read_off_the_shapes(safetensors_file):
    config = load(safetensors_file).config
    assert config.backbone.options["blocks"] == list(BLOCKS)
    assert config.backbone.options["res5_dilations"] == (1, 2, 4)
    assert (config.queries, config.hidden_channels, config.decoder_layers) == (QUERIES, HIDDEN, 2)
    assert (config.fpn_channels, config.mask_channels) == (FPN, MASK)
    assert (config.feedforward_channels, config.query_head_channels) == (40, 28)


@torch.no_grad()
def test_converted_and_loaded_gives_equal_outputs(safetensors_file, reference, expected, tmp_path):
    vocabulary = tmp_path / "seen.txt"
    vocabulary.write_text("".join(f"class {number} [seen]\n" for number in range(6)))
    result = convert(settings(safetensors_file, tmp_path / "out", vocabulary=vocabulary))
    model = MaskFormer.load(result.proposer)
    torch.testing.assert_close(model(PIXELS).mask_logits_BQhw, expected, atol=0, rtol=0)
    assert len(model.config.seen_classes) == 6
    assert result.unused == tuple(sorted(take_apart(read_weights(safetensors_file)).unused))

    clip = Clip.load(ClipSource(f"local-dir:{result.clip}"))
    assert (clip.side, clip.mean[0]) == (32, pytest.approx(120 / 255))
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, reference[f"clip_adapter.clip_model.{name}"].float())

    vectors_KD = text_vectors(
        clip, Vocabulary.of(["cat", "a dog"]), load_prompts(str(result.prompt))
    )
    original = tmp_path / "original.safetensors"
    learner = {name: value for name, value in reference.items() if "prompt_learner" in name}
    save_file(learner, original)
    again_KD = text_vectors(clip, Vocabulary.of(["cat", "a dog"]), load_prompts(str(original)))
    np.testing.assert_array_equal(vectors_KD, again_KD)
    np.testing.assert_allclose(np.linalg.norm(vectors_KD, axis=1), 1, atol=1e-6)


def test_a_prompt_of_word_embeddings_is_the_written_prompt(safetensors_file, tmp_path):
    clip = Clip.load(
        ClipSource(f"local-dir:{convert(settings(safetensors_file, tmp_path / 'out')).clip}")
    )
    ids = clip._tokenizer(["a sculpture of a"])[0][1:5]
    table = clip.model.token_embedding.weight
    prompt = LearnedPrompt.of({"prefix_prompt": table[ids].numpy()}, "here")
    names = ["Cat", "road, route", "x"]
    written = clip.encode_text([f"a sculpture of a {name}." for name in names])
    np.testing.assert_allclose(clip.encode_names(names, prompt), written, atol=1e-6)
    assert not clip.model.token_embedding._forward_hooks
    after = LearnedPrompt.of(
        {"prefix_prompt": table[ids[:1]].numpy(), "suffix_prompt": table[ids[1:2]].numpy()}, "here"
    )
    written = clip.encode_text([f"a {name} sculpture." for name in names])
    np.testing.assert_allclose(clip.encode_names(names, after), written, atol=1e-6)


def test_a_learned_prompt_works_with_the_embedded_clip():
    clip = Clip.load(ClipSource.of("embedded", None))
    tokens = clip._tokenizer(["a photo of a"])[0]
    ids = tokens[1 : tokens.argmax()]
    prompt = LearnedPrompt.of({"prefix_prompt": clip.model.token_embedding.weight[ids].numpy()}, "")
    written = clip.encode_text(["a photo of a red circle."])
    np.testing.assert_allclose(clip.encode_names(["red circle"], prompt), written, atol=1e-6)


def test_a_clip_that_reads_its_text_elsewhere_takes_no_learned_prompt():
    tower = {**CLIP["text_cfg"], "pool_type": "last"}
    model = open_clip.CLIP(**{**CLIP, "text_cfg": tower})
    clip = Clip(model, None, {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    prompt = LearnedPrompt.of({"prefix_prompt": np.zeros((1, TEXT))}, "here")
    with pytest.raises(ModelError, match="reads its text at the end token"):
        clip.encode_names(["cat"], prompt)


def test_a_prompt_that_does_not_fit_is_refused(safetensors_file, tmp_path):
    clip = Clip.load(
        ClipSource(f"local-dir:{convert(settings(safetensors_file, tmp_path / 'out')).clip}")
    )
    with pytest.raises(ModelError, match="vectors of 9 dimensions, the text tower of the clip 16"):
        clip.encode_names(["cat"], LearnedPrompt.of({"prefix_prompt": np.zeros((2, 9))}, "here"))
    long = LearnedPrompt.of({"prefix_prompt": np.zeros((73, TEXT))}, "here")
    with pytest.raises(ModelError, match="class 'road route' is at least 1 tokens too long"):
        clip.encode_names(["road", "road route"], long)
    file = tmp_path / "p.safetensors"
    save_file({"suffix_prompt": torch.zeros(1, 4), "ctx": torch.zeros(1, 4)}, file)
    with pytest.raises(SettingsError, match="unexpected ctx; missing prefix_prompt"):
        load_prompts(str(file))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(SettingsError, match="cannot read the learned prompt"):
        load_prompts(str(file))
    with pytest.raises(SettingsError, match="No such file"):
        load_prompts(str(tmp_path / "absent.safetensors"))


def broken(reference, change) -> dict[str, torch.Tensor]:
    weights = dict(reference)
    change(weights)
    return weights


def drop(name):
    return lambda weights: weights.pop(name)


def put(name, *shape):
    return lambda weights: weights.update({name: torch.zeros(shape)})


LAYER = "sem_seg_head.pixel_decoder.layer_2.weight"
IN_PROJ = "sem_seg_head.predictor.transformer.decoder.layers.1.self_attn.in_proj_weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (drop(LAYER), f"missing {LAYER}"),
        (drop(IN_PROJ), f"missing {IN_PROJ}"),
        (drop("sem_seg_head.predictor.query_embed.weight"), "missing sem_seg_head.predictor.query"),
        (drop("backbone.res4.0.conv3.weight"), "missing backbone.res4.0.conv3.weight"),
        (drop("clip_adapter.non_object_embedding"), "missing clip_adapter.non_object_embedding"),
        (put("backbone.res3.1.conv9.weight", 3), "unexpected backbone.res3.1.conv9.weight"),
        (put("teacher.weight", 3), "keys of no known part: unexpected teacher.weight"),
        (put(LAYER, FPN, 7, 3, 3), rf"{LAYER} has shape \(32, 7, 3, 3\)"),
        (put("clip_adapter.non_object_embedding", 1, 9), r"embedding has shape \(1, 9\)"),
        (drop("clip_adapter.clip_model.visual.ln_pre.bias"), "missing visual.ln_pre.bias"),
        (put("clip_adapter.clip_model.stray", 2), "unexpected stray"),
        (put("clip_adapter.prompt_learner.ctx", 2, TEXT), "unexpected ctx"),
    ],
)
def test_every_key_that_does_not_fit_is_named(change, message, reference, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(broken(reference, change), file)
    with pytest.raises(SettingsError, match=message):
        convert(settings(file, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_embeddings_of_two_sizes_are_refused_by_both_names(safetensors_file, reference, tmp_path):
    bare = {k: v for k, v in reference.items() if not k.startswith("clip_adapter.clip_model")}
    other = tmp_path / "bare.safetensors"
    save_file(bare, other)
    clip = open_clip.CLIP(**{**CLIP, "embed_dim": 12}).state_dict()
    wide = {f"clip_adapter.clip_model.{name}": value for name, value in clip.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(ModelError, match=r"bare\S+ gives 8 dimensions, the CLIP of \S+wide\S+ 12"):
        convert(settings(other, tmp_path / "out", clip_checkpoint=tmp_path / "wide.safetensors"))
    result = convert(settings(other, tmp_path / "out", clip_checkpoint=safetensors_file))
    assert result.clip and result.clip.is_dir()
    with pytest.raises(OutputError, match="exists already"):
        convert(settings(other, tmp_path / "out"))


def test_a_vocabulary_of_another_size_is_refused(safetensors_file, tmp_path):
    vocabulary = tmp_path / "names.txt"
    vocabulary.write_text("cat\ndog\n")
    with pytest.raises(ModelError, match=r"trained on 6 classes, \S+names.txt has 2 seen"):
        convert(settings(safetensors_file, tmp_path / "out", vocabulary=vocabulary))


def test_heads_that_do_not_divide_are_refused(safetensors_file, tmp_path):
    with pytest.raises(ModelError, match="16 hidden channels, not a multiple of 5"):
        convert(settings(safetensors_file, tmp_path / "out", heads=5))
    with pytest.raises(ModelError, match="16 wide, which no heads do not divide; give clip_text"):
        convert(settings(safetensors_file, tmp_path / "out", clip_text_heads=None))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(suffix, kept, reference, tmp_path):
    file = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save({"model": reference}, file)
    else:
        save_file(reference, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
    with pytest.raises(ModelError, match=rf"model{suffix} is truncated or no"):
        read_weights(file)


class Schedule:
    """An object whose class a checkpoint would have to run."""


def test_other_files_are_refused(reference, tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"model": reference, "scheduler": Schedule()}, file)
    with pytest.raises(ModelError, match=r"an object of type \S*Schedule, which is refused"):
        read_weights(file)
    torch.save({"model": {"weight": "text"}}, file)
    with pytest.raises(ModelError, match="weight is a str, not a tensor"):
        read_weights(file)
    torch.save([1], file)
    with pytest.raises(ModelError, match="holds a list, not a mapping"):
        read_weights(file)
    with pytest.raises(ModelError, match="there is no file"):
        read_weights(tmp_path / "absent.pth")
    (tmp_path / "R-103.caffemodel").write_bytes(b"")
    with pytest.raises(ModelError, match="no kind of file that is read here"):
        read_weights(tmp_path / "R-103.caffemodel")


def test_inspect_says_what_a_file_holds(safetensors_file, reference, tmp_path):
    found = inspect(WeightsInspectConfig(weights=safetensors_file))
    assert (found.kind, found.problems) == ("checkpoint of the authors", ())
    assert (found.facts["queries"], found.facts["seen_classes"]) == (QUERIES, 6)
    assert found.facts["clip"]["embedding_dim"] == DIM
    assert found.facts["prompt"] == "3 prefix vectors"
    assert {"proposer", "clip", "prompt"} <= found.parameters.keys()
    result = convert(settings(safetensors_file, tmp_path / "out"))
    kinds = {
        result.proposer: "proposer",
        result.clip: "open_clip model",
        result.prompt: "learned prompt",
    }
    assert {path: inspect(WeightsInspectConfig(weights=path)).kind for path in kinds} == kinds
    file = tmp_path / "broken.safetensors"
    save_file(broken(reference, drop(LAYER)), file)
    assert f"missing {LAYER}" in inspect(WeightsInspectConfig(weights=file)).problems[0]
    save_file({"a.b": torch.zeros(3)}, file)
    assert inspect(WeightsInspectConfig(weights=file)).parameters == {"a": 3}
    with pytest.raises(ModelError, match="has neither"):
        inspect(WeightsInspectConfig(weights=tmp_path))


def test_a_region_head_of_its_own_is_kept(reference, tmp_path):
    weights = dict(reference)
    for name, value in reference.items():
        if name.startswith("clip_adapter."):
            weights[f"_region_{name}"] = value.clone()
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    save_file(weights, same)
    weights["_region_clip_adapter.clip_model.logit_scale"] = torch.tensor(1.0)
    save_file(weights, other)
    shared = convert(settings(same, tmp_path / "shared"))
    assert shared.region_prompt and shared.region_clip is None
    own = convert(settings(other, tmp_path / "own"))
    assert own.region_clip and own.region_clip.is_dir()


@torch.no_grad()
def test_resnet_strides_and_dilations_follow_the_options():
    options = {"stem_channels": 8, "blocks": BLOCKS, "bottleneck_channels": WIDTHS}
    for name in ("r50", "r101c"):
        for first in (False, True):
            kind = {**options, "out_channels": OUTS, "res5_dilations": (1, 2, 4)}
            config = BackboneConfig(
                kind="resnet", name=name, options={**kind, "stride_in_1x1": first}
            )
            backbone, widths = build_backbone(config)
            maps = backbone(PIXELS)
            assert widths == [level.shape[1] for level in maps] == list(OUTS)
            assert [level.shape[2:] for level in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
            convs = [block.conv2 for block in backbone.res5]
            assert [conv.dilation[0] for conv in convs] == [1, 2, 4]
            assert (convs[0].stride, backbone.res5[0].conv1.stride) == (
                ((1, 1), (2, 2)) if first else ((2, 2), (1, 1))
            )
    with pytest.raises(ModelError, match="no resnet 'r7'; there are r50, r101c"):
        build_backbone(BackboneConfig(kind="resnet", name="r7"))
    with pytest.raises(ModelError, match="res5 has 3 blocks, but 2 dilations"):
        build_backbone(
            BackboneConfig(kind="resnet", name="r50", options={"res5_dilations": (1, 2)})
        )


@torch.no_grad()
def test_swin_takes_images_of_any_size():
    tiny = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
    backbone, widths = build_backbone(BackboneConfig(kind="swin", name="swin-tiny", options=tiny))
    maps = backbone.eval()(PIXELS)
    assert widths == [level.shape[1] for level in maps] == [8, 16, 32, 64]
    assert [level.shape[2:] for level in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    with pytest.raises(ModelError, match="no swin 'swin-x'; there are swin-tiny"):
        build_backbone(BackboneConfig(kind="swin", name="swin-x"))


@pytest.mark.parametrize("name, millions", [("r50", 23.5), ("r101c", 42.5)])
def test_the_presets_have_the_published_numbers_of_parameters(name, millions):
    with torch.device("meta"):
        backbone, widths = build_backbone(BackboneConfig(kind="resnet", name=name))
    assert widths == [256, 512, 1024, 2048]
    assert sum(value.numel() for value in backbone.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.05
    )


def test_the_head_of_the_paper_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = MaskFormer(MaskFormerConfig(backbone=BackboneConfig(kind="resnet", name="r101c")))
    count = sum(value.numel() for value in model.parameters())
    count -= sum(value.numel() for value in model.backbone.parameters())
    assert count / 1e6 == pytest.approx(18.5, abs=0.05)


def per_pixel_of(reference):
    """The checkpoint of a per-pixel network with the backbone and pixel decoder of another."""
    noise = torch.Generator().manual_seed(5)
    head = ("sem_seg_head.predictor.", "clip_adapter.non_object", "criterion.")
    weights = {name: value for name, value in reference.items() if not name.startswith(head)}
    weights["sem_seg_head.predictor.weight"] = torch.randn(DIM, MASK, 1, 1, generator=noise)
    weights["sem_seg_head.predictor.bias"] = torch.randn(DIM, generator=noise)
    return weights


@pytest.mark.parametrize(
    "arrange", [dict, first_layout, doubled], ids=["today", "first", "doubled"]
)
@torch.no_grad()
def test_a_per_pixel_checkpoint_is_converted(arrange, reference, safetensors_file, tmp_path):
    weights = arrange(per_pixel_of(reference))
    save_file(weights, tmp_path / "fcn.safetensors")
    result = convert(settings(tmp_path / "fcn.safetensors", tmp_path / "out", short_edge=96))
    network = PerPixel.load(result.proposer)
    shared = load(safetensors_file)
    features = shared.pixel_decoder(shared.backbone(PIXELS)).last_hidden_state
    expected = torch.nn.functional.conv2d(
        features, weights["sem_seg_head.predictor.weight"], weights["sem_seg_head.predictor.bias"]
    )
    torch.testing.assert_close(network(PIXELS), expected)
    config = network.config
    assert (config.embedding_dim, config.mask_channels, config.fpn_channels) == (DIM, MASK, FPN)
    assert (config.size_divisibility, config.short_edge) == (1, 96)
    assert shared.config.size_divisibility == 32
    assert result.clip and result.prompt
    told = settings(tmp_path / "fcn.safetensors", tmp_path / "padded", size_divisibility=8)
    assert PerPixel.load(convert(told).proposer).config.size_divisibility == 8

    found = inspect(WeightsInspectConfig(weights=tmp_path / "fcn.safetensors"))
    assert (found.facts["architecture"], found.problems) == ("per-pixel", ())
    written = inspect(WeightsInspectConfig(weights=result.proposer))
    assert (written.kind, written.facts["architecture"]) == ("proposer", "per-pixel")


@pytest.mark.parametrize(
    "change, message",
    [
        (drop("sem_seg_head.predictor.bias"), "missing sem_seg_head.predictor.bias"),
        (put("sem_seg_head.predictor.query_embed.weight", 5, 16), "unexpected sem_seg_head.pred"),
        (put("sem_seg_head.predictor.weight", DIM, 7, 1, 1), r"predictor.weight has shape \(8, 7,"),
        (put("clip_adapter.non_object_embedding", 1, DIM), "unexpected clip_adapter.non_object"),
    ],
)
def test_every_key_of_a_per_pixel_checkpoint_must_fit(change, message, reference, tmp_path):
    save_file(broken(per_pixel_of(reference), change), tmp_path / "fcn.safetensors")
    with pytest.raises(ModelError, match=message):
        convert(settings(tmp_path / "fcn.safetensors", tmp_path / "out"))
