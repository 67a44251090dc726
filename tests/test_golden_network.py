"""Golden: the networks, from the photograph to the labels, and from the authors' checkpoint."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from jobs.weights import convert
from pipeline.decode import decode_image
from pipeline.fusion import LOGIT_SCALE, fuse, query_probs, region_probs, score_tiles
from pipeline.masks import mask_probs
from pipeline.models import Proposals, RegionEmbeds, find_proposer
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crop_classifier import CropClassifier
from pipeline.models.crops import CropSettings
from pipeline.models.maskformer_proposer import MaskFormerProposer
from pipeline.prompts import load_templates
from pipeline.resize import padded_size, resize_image, resized_size
from schemas.weights_config import WeightsConvertConfig
from tests.golden import (
    ROOT,
    Network,
    cases,
    clip,
    donor_of_clip,
    images,
    networks,
    noise,
    prompts,
    proposer,
    text_of,
    untold,
)

TOLERANCE = 1e-4
CLIP_BATCH = 64

pytestmark = pytest.mark.skipif(not networks(), reason=f"no golden sets at {ROOT}")


def close(found: Tensor, stored: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, stored, atol=tolerance, rtol=TOLERANCE)


def of_image(value: tuple[Network, int]) -> str:
    return f"{value[0].folder.name}-{value[1]}"


each_network = pytest.mark.parametrize("network", networks(), ids=lambda n: n.folder.name)
each_image = pytest.mark.parametrize("network, image", images(), ids=map(of_image, images()))
each_run = pytest.mark.parametrize(
    "network, run, image", cases(), ids=[f"{n.folder.name}-{run}-{i}" for n, run, i in cases()]
)


@pytest.fixture(autouse=True)
def _light():
    """No gradients, and one thread: these networks are too small to gain from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


# The network, each stage fed the stored output of the stage before


def photograph(network: Network, image: int) -> Any:
    """The photograph as the pipeline decodes and resizes it: RGB (H, W, 3), and its own size."""
    entry = next(entry for entry in network.config["images"] if entry["index"] == image)
    data = (network.folder / entry["file"]).read_bytes()
    decoded = decode_image(data, max_pixels=10**8, max_frames=1).image
    size = (decoded.height, decoded.width)
    edges = network.config["input"]["short_edge"], network.config["input"]["long_edge"]
    return resize_image(decoded, resized_size(size, *edges)), size


@each_image
def test_golden_resize(network, image):
    pixels_HW3, size = photograph(network, image)
    assert torch.equal(
        torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1), network.stage(image, "image_u8")
    )
    assert size == network.size(image, "orig_hw")
    assert pixels_HW3.shape[:2] == network.size(image, "input_hw")
    divisor = network.config["input"]["pad_multiple"]
    assert padded_size(pixels_HW3.shape[:2], divisor) == network.size(image, "padded_hw")


@cache
def proposed(network: Network, image: int) -> tuple[Tensor, Proposals]:
    """What enters the network for the photograph, and what our proposer returns."""
    seen: list[Tensor] = []
    model = proposer(network)
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        proposals = MaskFormerProposer(model).propose([photograph(network, image)[0]])
    finally:
        hook.remove()
    return seen[0], proposals[0]


@each_image
def test_golden_network_input(network, image):
    pixels_13HW, _ = proposed(network, image)
    assert pixels_13HW.shape[2:] == network.size(image, "padded_hw")
    if network.has(image, "net_input"):
        close(pixels_13HW[0], network.stage(image, "net_input"), 1e-6)


@each_image
def test_golden_backbone(network, image):
    backbone: Any = proposer(network).backbone
    features = backbone.stem(proposed(network, image)[0])
    is_fed_stored = True
    for name in ("res2", "res3", "res4", "res5"):
        features = getattr(backbone, name)(features)
        if network.has(image, name):
            stored = network.stage(image, name)[None]
            close(features, stored, TOLERANCE if is_fed_stored else noise(network, name))
            features = stored
        is_fed_stored = network.has(image, name)


def features_of(network: Network, image: int) -> list[Tensor]:
    """The stored feature maps, with our own where one was left out."""
    found = proposer(network).backbone(proposed(network, image)[0])
    return [
        network.stage(image, f"res{index}")[None] if network.has(image, f"res{index}") else ours
        for index, ours in enumerate(found, start=2)
    ]


@each_image
def test_golden_pixel_decoder(network, image):
    if not network.has(image, "mask_features"):
        return
    decoder: Any = proposer(network).pixel_decoder
    *finer, coarsest = features_of(network, image)
    level = decoder.fpn.stem(coarsest)
    for number, layer in zip((4, 3, 2, 1), [*decoder.fpn.layers, None], strict=True):
        if network.has(image, f"fpn_layer_{number}"):
            stored = network.stage(image, f"fpn_layer_{number}")[None]
            close(level, stored)
            level = stored
        if layer is not None:
            level = layer(level, finer.pop())
    close(decoder.mask_projection(level)[0], network.stage(image, "mask_features"))


@each_image
def test_golden_memory_and_position(network, image):
    model = proposer(network)
    memory = model.input_projection(network.stage(image, "res5")[None])
    close(memory[0], network.stage(image, "memory"))
    if network.has(image, "position"):
        position = model.position(memory.shape, memory.device, memory.dtype)
        close(position[0], network.stage(image, "position"))


@each_image
def test_golden_decoder_layers(network, image):
    stored = network.stage(image, "decoder")
    layers = proposer(network)._decode(network.stage(image, "res5")[None])
    assert len(layers) == network.config["transformer"]["decoder_layers"]
    close(torch.cat(layers[-len(stored) :]), stored)


@each_image
def test_golden_heads(network, image):
    model = proposer(network)
    decoder = network.stage(image, "decoder")
    masks, queries = model.mask_head(decoder), model.query_head(decoder)
    if network.has(image, "mask_embed"):
        close(masks, network.stage(image, "mask_embed"))
        close(queries, network.stage(image, "class_embed"))
    close(queries[-1], network.stage(image, "query_embed_raw"))
    close(
        normalize(network.stage(image, "query_embed_raw"), dim=1),
        network.stage(image, "query_embed"),
    )
    if network.has(image, "mask_features"):
        logits = torch.einsum("qc,chw->qhw", masks[-1], network.stage(image, "mask_features"))
        close(logits, network.stage(image, "mask_logits"))


@each_image
def test_golden_soft_masks(network, image):
    if network.has(image, "mask_prob"):
        sizes = network.size(image, "padded_hw"), network.size(image, "input_hw")
        found = mask_probs(network.stage(image, "mask_logits"), *sizes)
        stored = network.stage(image, "mask_prob")
        close(found, stored.float(), 5e-4 if stored.dtype == torch.float16 else TOLERANCE)


# Conversion


@each_network
def test_golden_checkpoint_converts(network, tmp_path):
    told, settings = untold(network), network.config["clip"]
    donor = donor_of_clip(network)
    result = convert(
        WeightsConvertConfig(
            checkpoint=network.folder / network.config["weights"]["file"],
            output=tmp_path / "models",
            clip_checkpoint=None
            if donor == network
            else donor.folder / donor.config["weights"]["file"],
            heads=told.heads,
            res5_dilations=told.res5_dilations,
            stride_in_1x1=told.stride_in_1x1,
            pixel_mean=told.pixel_mean,
            pixel_std=told.pixel_std,
            size_divisibility=told.size_divisibility,
            short_edge=told.short_edge,
            long_edge=told.long_edge,
            clip_text_heads=settings["text"]["heads"],
            clip_vision_heads=settings["vision"]["heads"],
        )
    )
    entry = find_proposer("maskformer")
    card = entry.describe(str(result.proposer))
    assert (card.short_edge, card.long_edge) == (told.short_edge, told.long_edge)
    image = network.config["images"][0]["index"]
    proposals = entry.load(str(result.proposer), "cpu").propose([photograph(network, image)[0]])[0]
    _, expected = proposed(network, image)
    close(proposals.mask_logits_Qhw, expected.mask_logits_Qhw, 1e-6)
    close(proposals.void_logits_Q, expected.void_logits_Q, 1e-6)
    loaded = Clip.load(ClipSource(f"local-dir:{result.clip}"))
    assert (loaded.side, loaded.mean) == (settings["image_size"], tuple(settings["image_mean"]))
    names = network.vocabulary["names"]
    close(*(torch.from_numpy(one.encode_text(names)) for one in (loaded, clip(network))), 1e-6)


# Text


@each_network
def test_golden_names_and_tokens(network):
    names = network.vocabulary["names"]
    assert [name.strip() for name in network.vocabulary["names_raw"]] == names
    tokenizer = clip(network)._tokenizer
    single = [network.vocabulary["templates"]["single"][0].replace("{}", name) for name in names]
    for stored, texts in (("tokens_single", single), ("tokens_name", names)):
        if stored in network.texts:
            assert tokenizer(texts).tolist() == network.texts[stored].tolist()


@each_network
def test_golden_templates_are_our_named_sets(network):
    for name in {"vild", "imagenet"} & network.vocabulary["templates"].keys():
        assert sorted(network.vocabulary["templates"][name]) == sorted(load_templates(name))


@each_network
def test_golden_text_vectors(network):
    kinds = {*network.config["prompts"], *network.vocabulary["templates"]} & {*network.texts}
    for kind in sorted(kinds):
        close(text_of(network, kind), torch.from_numpy(network.texts[kind]), 1e-6)
    for key in (key for key in network.texts if key.endswith("_per_template")):
        templates = prompts(network, key.removesuffix("_per_template")).templates
        for template, stored in zip(templates, network.texts[key], strict=True):
            texts = [template.replace("{}", name) for name in network.vocabulary["names"]]
            close(torch.from_numpy(clip(network).encode_text(texts)), torch.from_numpy(stored))


@each_network
def test_golden_no_object_vector(network):
    found = normalize(proposer(network).no_object, dim=0)
    stored = [network.run(run)["no_object"] for run in network.config["runs"]]
    stored += [network.texts["no_object"]] if "no_object" in network.texts else []
    for vector in stored:
        close(found, torch.from_numpy(vector), 1e-6)


@each_run
def test_golden_run_text_vectors(network, run, image):
    settings, stored = network.config["runs"][run], network.run(run)
    close(text_of(network, settings["prompt_query_head"]), torch.from_numpy(stored["T"]))
    if "T_region" in stored:
        region = text_of(network, settings["prompt_region_head"])
        close(region, torch.from_numpy(stored["T_region"]))


# Classification


class Stored:
    """The stored tensors of one image of a run."""

    def __init__(self, network: Network, run: str, image: int) -> None:
        self.network, self.image = network, image
        self.settings: dict[str, Any] = network.config["runs"][run]
        self._arrays = stored_run(network, run)

    def has(self, name: str) -> bool:
        return f"img{self.image}.{name}" in self._arrays

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[f"img{self.image}.{name}"].copy())

    def head(self, name: str) -> Tensor:
        """A vector of the query head, or of the region head where that has its own."""
        own = self._arrays.get(f"{name}_region")
        return torch.from_numpy(self._arrays[name] if own is None else own)

    @property
    def crop_settings(self) -> CropSettings:
        return CropSettings(
            self.settings["mask_threshold"],
            self.settings["mask_fill"],
            self.settings["mask_expand_ratio"],
            self.settings["mask_matting"],
        )


@cache
def stored_run(network: Network, run: str) -> dict[str, Any]:
    return network.run(run)


def embed(stored: Stored, mask_logits_Qhw: Tensor) -> RegionEmbeds:
    """Our region classifier on the stored image and the given masks."""
    network, image = stored.network, stored.image
    sizes = network.size(image, "padded_hw"), network.size(image, "input_hw")
    regions = CropClassifier(clip(network), stored.crop_settings, CLIP_BATCH)
    pair = (network.stage(image, "image_u8"), mask_probs(mask_logits_Qhw, *sizes))
    return regions.embed([pair])[0]


@each_run
def test_golden_query_logits(network, run, image):
    stored = Stored(network, run, image)
    arrays = stored_run(network, run)
    vectors = torch.cat([torch.from_numpy(arrays[name]).reshape(-1, arrays["T"].shape[1])
                         for name in ("T", "no_object")])  # fmt: skip
    close(LOGIT_SCALE * network.stage(image, "query_embed") @ vectors.T, stored["query_logits"])


@each_run
def test_golden_clip_features_of_stored_crops(network, run, image):
    stored = Stored(network, run, image)
    if not stored.has("crops"):
        return
    rows = stored["valid"].nonzero()[:, 0].tolist()
    chosen = [rows.index(query) for query in stored["crops_query"].tolist()]
    crops = stored["crops"]
    rounding = 2e-3 if crops.dtype == torch.float16 else TOLERANCE
    found = clip(network).encode_crops(crops.float(), CLIP_BATCH)
    close(found, stored["clip_feat"][chosen], rounding)


@each_run
def test_golden_clip_features_and_logits(network, run, image):
    stored = Stored(network, run, image)
    if not stored.has("clip_feat"):
        return
    embeds = embed(stored, network.stage(image, "mask_logits"))
    assert torch.equal(embeds.valid_Q, stored["valid"])
    close(embeds.clip_embeds_VD, stored["clip_feat"])
    vectors = torch.cat([stored.head("T"), stored.head("no_object")[None]])
    same_masks = network.config["numerical_noise"].get("clip_logits_with_identical_masks", 0.0)
    tolerance = max(TOLERANCE, 3 * same_masks)
    close(LOGIT_SCALE * embeds.clip_embeds_VD @ vectors.T, stored["clip_logits"], tolerance)
    close(region_probs(embeds.clip_embeds_VD, stored.head("T")), stored["C"])


# End to end, from the photograph


@each_image
def test_golden_proposals_end_to_end(network, image):
    _, proposals = proposed(network, image)
    stored = network.stage(image, "mask_logits")
    assert (proposals.mask_logits_Qhw - stored).abs().max() <= noise(network, "mask_logits")
    difference = proposals.query_embeds_QD - network.stage(image, "query_embed")
    assert difference.abs().max() <= noise(network, "query_embed")


@each_run
def test_golden_labels_end_to_end(network, run, image):
    stored = Stored(network, run, image)
    settings = stored.settings
    _, proposals = proposed(network, image)
    query_text = text_of(network, settings["prompt_query_head"])
    region_text = text_of(network, settings["prompt_region_head"])
    query_QK = query_probs(proposals.query_embeds_QD, query_text, proposals.void_logits_Q)
    assert (query_QK - stored["P"]).abs().max() <= noise(network, "P")
    valid_Q, region_VK = torch.ones(len(query_QK), dtype=torch.bool), None
    if settings["ensemble"]:
        embeds = embed(stored, proposals.mask_logits_Qhw)
        valid_Q = embeds.valid_Q
        assert torch.equal(valid_Q, stored["valid"])
        region_VK = region_probs(
            embeds.clip_embeds_VD.reshape(-1, region_text.shape[1]), region_text
        )
        if stored.has("C"):
            # One mask pixel on the other side of the threshold moves a whole crop's scores.
            assert (region_VK - stored["C"]).abs().max() <= noise(network, "C", times=10.0)
    flags = settings["seen_flags"]
    seen_K = None if flags is None else torch.tensor(flags, dtype=torch.bool)
    scores_QK = fuse(query_QK, region_VK, valid_Q, seen_K, settings["ensemble_weight"])
    sizes = network.size(image, "padded_hw"), network.size(image, "input_hw")
    masks_QHW = mask_probs(proposals.mask_logits_Qhw, *sizes)
    tiles = list(score_tiles(scores_QK, masks_QHW, network.size(image, "orig_hw")))
    sums_KHW = torch.cat([tile.scores_KTW for tile in tiles], dim=1)
    evidence_HW = torch.cat([tile.evidence_TW for tile in tiles])
    theirs_1HW = stored["argmax"][None].long()
    lead_HW = sums_KHW.amax(dim=0) - sums_KHW.gather(0, theirs_1HW)[0]
    # What another processor rounds otherwise may move the scores of a crop, and with them close
    # decisions: by no more than the scores and the masks of these two have moved.
    fused_QK = scores_QK if len(stored["F"]) == len(scores_QK) else scores_QK[valid_Q]
    moved = float((fused_QK - stored["F"]).abs().max()) if len(fused_QK) else 0.0
    moved_mask = noise(network, "mask_logits") / 4  # the steepest slope of the sigmoid
    allowed_HW = 2 * (moved * evidence_HW + moved_mask * float(scores_QK.sum(dim=0).max()))
    clear = ~stored["ambiguous"]
    assert (lead_HW <= allowed_HW)[clear].all()
    assert not clear.any() or (lead_HW == 0)[clear].double().mean() >= 0.995
