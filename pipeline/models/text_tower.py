"""CLIP's text tower on as few tokens as matter.

Dimension key: N texts, L tokens, D embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def text_tower(model: Any) -> Any:
    """Return the part of an open_clip model that reads text: the model itself, or its `text`."""
    return getattr(model, "text", model)


def reads_end_token(model: Any) -> bool:
    """Say whether the feature of a text is read at its end token, which has the highest id."""
    tower = text_tower(model)
    pools = {getattr(tower, "pool_type", None), getattr(tower, "text_pool_type", None)}
    # With a class token of its own (CoCa) a tower pools there, and masks padding by its id.
    return "argmax" in pools and getattr(tower, "cls_emb", None) is None


def tokens_that_matter(model: Any, tokens_NL: Tensor) -> int:
    """Return how many of the L tokens can change any feature.

    Where attention is causal and the feature read at the end token, nothing behind the last of
    those does: of the 77 tokens of OpenAI's context, a dozen are left of a class name in a prompt.
    """
    if not _looks_back_from_the_end(model):
        return tokens_NL.shape[1]
    return int(tokens_NL.argmax(1).max()) + 1


def encode_tokens(model: Any, tokens_NL: Tensor) -> Tensor:
    """Return `model.encode_text` of the tokens (N, D), without the padding behind the longest."""
    if not _looks_back_from_the_end(model):
        whole_ND: Tensor = model.encode_text(tokens_NL)
        return whole_ND
    length = tokens_that_matter(model, tokens_NL)
    with _shortened(text_tower(model), length):
        features_ND: Tensor = model.encode_text(tokens_NL[:, :length])
    return features_ND


def _looks_back_from_the_end(model: Any) -> bool:
    tower = text_tower(model)
    is_causal = getattr(tower, "attn_mask", None) is not None
    return is_causal and not getattr(tower, "use_pad_mask", False) and reads_end_token(model)


@contextmanager
def _shortened(tower: Any, length: int) -> Iterator[None]:
    """Let a causal text tower take fewer tokens than its context."""
    positions, mask = tower.positional_embedding, tower.attn_mask
    tower.positional_embedding = nn.Parameter(positions[:length], requires_grad=False)
    tower.attn_mask = mask[:length, :length]
    try:
        yield
    finally:
        tower.positional_embedding, tower.attn_mask = positions, mask
