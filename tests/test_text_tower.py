"""Text towers without the padding: the same vectors, from fewer tokens."""

import open_clip
import pytest
import torch

from pipeline.models.text_tower import encode_tokens, tokens_that_matter

WIDE = {"width": 32, "heads": 2, "layers": 2, "vocab_size": 49408, "context_length": 77}
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
TEXTS = ["a cat", "a photo of a very old and very large red sofa in the scene", "road"]


def native() -> torch.nn.Module:
    return open_clip.CLIP(16, VISION, WIDE)


def custom(**text: object) -> torch.nn.Module:
    return open_clip.CustomTextCLIP(16, VISION, {**WIDE, **text})


@pytest.fixture
def tokens_NL() -> torch.Tensor:
    torch.manual_seed(0)
    return open_clip.get_tokenizer("ViT-B-32")(TEXTS)


@pytest.mark.parametrize("make", [native, custom], ids=["CLIP", "CustomTextCLIP"])
def test_padding_behind_the_end_is_left_out_and_changes_nothing(make, tokens_NL):
    model, seen = make().eval(), []
    tower = getattr(model, "text", model)
    tower.token_embedding.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    with torch.inference_mode():
        whole_ND = model.encode_text(tokens_NL)
        cut_ND = encode_tokens(model, tokens_NL)
        again_ND = model.encode_text(tokens_NL)
    assert seen == [77, 16, 77]
    torch.testing.assert_close(cut_ND, whole_ND, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(again_ND, whole_ND, atol=0, rtol=0)
    assert (whole_ND[0] - whole_ND[2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True},
        {"pool_type": "last"},
    ],
    ids=["looks ahead", "reads the last"],
)
def test_other_towers_read_the_whole_context(text, tokens_NL):
    model = custom(**text).eval()
    assert tokens_that_matter(model, tokens_NL) == 77
    with torch.inference_mode():
        whole_ND = model.encode_text(tokens_NL)
        torch.testing.assert_close(encode_tokens(model, tokens_NL), whole_ND, atol=0, rtol=0)


def test_a_tower_that_masks_padding_reads_the_whole_context(tokens_NL):
    model = custom().eval()
    model.text.use_pad_mask = True
    assert tokens_that_matter(model, tokens_NL) == 77
    with torch.inference_mode():
        whole_ND = model.encode_text(tokens_NL)
        torch.testing.assert_close(encode_tokens(model, tokens_NL), whole_ND, atol=0, rtol=0)


def test_a_gradient_reaches_what_is_learned_but_not_the_tower(tokens_NL):
    model = native().requires_grad_(False)
    learned_W = torch.zeros(32, requires_grad=True)
    hook = model.token_embedding.register_forward_hook(lambda *given: given[2] + learned_W)
    encode_tokens(model, tokens_NL).sum().backward()
    hook.remove()
    assert learned_W.grad is not None and learned_W.grad.abs().max() > 0
    assert isinstance(model.positional_embedding, torch.nn.Parameter)
    assert len(model.positional_embedding) == 77
