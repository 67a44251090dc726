"""Class names inside a learned prompt, through CLIP's text tower (spec 1.4).

Dimension key: N names, D embedding, L tokens of a prompt, W width of the text tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.models.text_tower import encode_tokens, reads_end_token, text_tower
from pipeline.prompts import LearnedPrompt
from schemas.errors import ModelError

_Slot = tuple[int, NDArray[np.float32] | None]  # a token, and the vector that replaces its own


@dataclass(frozen=True)
class _Place:
    """A forward hook of the token embedding that puts learned vectors in their places."""

    is_learned_NL1: Tensor
    vectors_NLW: Tensor

    def __call__(self, module: nn.Module, tokens: tuple[Tensor, ...], embeds_NLW: Tensor) -> Tensor:
        length = embeds_NLW.shape[1]  # without the padding that does not matter
        vectors_NLW = self.vectors_NLW[:, :length].to(embeds_NLW.dtype)
        return torch.where(self.is_learned_NL1[:, :length], vectors_NLW, embeds_NLW)


@dataclass(frozen=True, eq=False)
class PromptedNames:
    """A learned prompt together with the CLIP that it stands before.

    The sequence is start, prefix, name, suffix, full stop, end, padding; positions are added to it
    as to any text, and the feature is read at the end token.
    """

    model: Any
    tokenizer: Any
    prompt: LearnedPrompt
    embedding: nn.Embedding

    @classmethod
    def of(cls, model: Any, tokenizer: Any, prompt: LearnedPrompt) -> "PromptedNames":
        """Check that they fit; raises ModelError for another kind or width of text tower."""
        tower = text_tower(model)
        if not reads_end_token(model):
            raise ModelError(
                "a learned prompt needs a clip that reads its text at the end token, as OpenAI's "
                f"do; the text tower of this one ({type(tower).__name__}) does not"
            )
        embedding: nn.Embedding = tower.token_embedding
        if prompt.width != embedding.embedding_dim:
            raise ModelError(
                f"the learned prompt has vectors of {prompt.width} dimensions, the text tower of "
                f"the clip {embedding.embedding_dim}; a prompt fits the clip it was learned with"
            )
        return cls(model, tokenizer, prompt, embedding)

    def encode(self, names: Sequence[str]) -> Tensor:
        """Return the text features (N, D), of any length; raises ModelError for a long name."""
        rows = [self._slots(name) for name in names]
        device = self.embedding.weight.device
        tokens_NL = torch.tensor([[token for token, _ in row] for row in rows])
        learned_NL1 = torch.tensor([[[vector is not None] for _, vector in row] for row in rows])
        none_W = np.zeros(self.embedding.embedding_dim, np.float32)
        vectors_NLW = np.stack(
            [[none_W if vector is None else vector for _, vector in row] for row in rows]
        )
        place = _Place(learned_NL1.to(device), torch.from_numpy(vectors_NLW).to(device))
        hook = self.embedding.register_forward_hook(place)
        try:
            return encode_tokens(self.model, tokens_NL.to(device))
        finally:
            hook.remove()

    def tokens(self, names: Sequence[str]) -> Tensor:
        """Return the token ids (N, L); those of learned vectors are 0. ModelError as `encode`."""
        return torch.tensor([[token for token, _ in self._slots(name)] for name in names])

    def _slots(self, name: str) -> list[_Slot]:
        """Return the sequence of one class name, as long as the text tower's context."""
        start, *words, end = self._word_ids(name)
        stop = self._word_ids(".")[-2]  # some tokenizers put a word boundary before it
        prompt, signals = self.prompt, self.prompt.signals
        slots: list[_Slot] = [
            (start, signals.get("start_signal")),
            *((0, vector) for vector in prompt.prefix_PW),
            *((word, None) for word in words),
            *((0, vector) for vector in prompt.suffix_PW),
            (stop, signals.get("dot_signal")),
            (end, signals.get("end_signal")),
        ]
        free = self.tokenizer.context_length - len(slots)
        if free < 0:
            raise ModelError(
                f"class {name!r} is at least {-free} tokens too long for the learned prompt"
            )
        return slots + [(0, signals.get("pad_signal"))] * free

    def _word_ids(self, text: str) -> list[int]:
        """Return the token ids from the start to the end token, which has the highest id."""
        ids = self.tokenizer([text])[0]
        return list(map(int, ids[: int(ids.argmax()) + 1]))
