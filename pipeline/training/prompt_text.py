"""Class names behind vectors that are learned, through a frozen text tower (spec 1.4, 3.2).

Dimension key: N words (names and synonyms), K classes, D embedding, L tokens, P learned vectors,
W width of the text tower, B regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from pipeline.fusion import LOGIT_SCALE
from pipeline.models.clip import Clip
from pipeline.models.prompted_names import PromptedNames
from pipeline.models.text_tower import encode_tokens, text_tower
from pipeline.prompts import LearnedPrompt
from schemas.vocabulary import Vocabulary

INITIAL_DEVIATION: Final = 0.02


class Context(nn.Module):
    """The one thing that is learned: vectors shared by all classes (P, W)."""

    def __init__(self, count: int, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.vectors_PW = nn.Parameter(
            INITIAL_DEVIATION * torch.randn(count, width, generator=generator)
        )

    def prompt(self) -> LearnedPrompt:
        """Return the vectors as `annotate` takes them."""
        arrays = {"prefix_prompt": self.vectors_PW.detach().cpu().numpy()}
        return LearnedPrompt.of(arrays, "the context")


@dataclass(frozen=True)
class _Prefix:
    """A forward hook of the token embedding that puts the context behind the start token."""

    vectors_PW: Tensor

    def __call__(self, module: nn.Module, tokens: tuple[Tensor, ...], embeds_NLW: Tensor) -> Tensor:
        prefix_NPW = self.vectors_PW.to(embeds_NLW.dtype).expand(len(embeds_NLW), -1, -1)
        behind = 1 + len(self.vectors_PW)
        return torch.cat([embeds_NLW[:, :1], prefix_NPW, embeds_NLW[:, behind:]], dim=1)


class ClassTexts:
    """The words of all classes as tokens, with room for a context."""

    def __init__(self, clip: Clip, vocabulary: Vocabulary, count: int) -> None:
        """Raise ModelError for a text tower that no prompt can be learned for, or a long name."""
        prompted = _room(clip, count)
        words = [(entry.name, *entry.synonyms) for entry in vocabulary.classes]
        self._model: Any = clip.model
        self._embedding = prompted.embedding
        tokens_NL = prompted.tokens([word for part in words for word in part])
        self._tokens_NL = tokens_NL.to(clip.device)
        # A class with synonyms has the direction of the sum of its words, as in annotation.
        owners = [index for index, part in enumerate(words) for _ in part]
        sum_KN = torch.zeros(len(words), len(owners))
        sum_KN[owners, range(len(owners))] = 1.0
        self._sum_KN = sum_KN.to(clip.device)

    @property
    def width(self) -> int:
        """Width of the text tower."""
        return self._embedding.embedding_dim

    def vectors(self, words_ND: Tensor) -> Tensor:
        """Return unit vectors of classes (K, D) from those of their words."""
        return normalize(self._sum_KN @ words_ND, dim=1)

    def words(self, context_PW: Tensor, parts: int = 1) -> Tensor:
        """Return unit vectors of all words (N, D), through which a gradient reaches the context."""
        return torch.cat([self._encode(context_PW, part) for part in self._parts(parts)])

    def step(self, context: Context, embeds_BD: Tensor, classes_B: Tensor, parts: int) -> float:
        """Leave the gradient of the loss in the context, and return the loss.

        In more than one part, the words are encoded once to find the gradient at their vectors,
        and once more, part by part, to take it on to the context.
        """
        context_PW = context.vectors_PW
        if parts == 1:
            loss = prompt_loss(embeds_BD, self.vectors(self.words(context_PW)), classes_B)
            torch.autograd.backward(loss)
            return float(loss.detach())
        with torch.no_grad():
            words_ND = self.words(context_PW, parts)
        words_ND.requires_grad_()
        loss = prompt_loss(embeds_BD, self.vectors(words_ND), classes_B)
        (gradient_ND,) = torch.autograd.grad(loss, words_ND)
        start = 0
        for part in self._parts(parts):
            vectors_ND = self._encode(context_PW, part)
            torch.autograd.backward(vectors_ND, gradient_ND[start : start + len(vectors_ND)])
            start += len(vectors_ND)
        return float(loss.detach())

    def _parts(self, parts: int) -> Sequence[Tensor]:
        return torch.tensor_split(self._tokens_NL, min(parts, len(self._tokens_NL)))

    def _encode(self, context_PW: Tensor, tokens_NL: Tensor) -> Tensor:
        hook = self._embedding.register_forward_hook(_Prefix(context_PW))
        try:
            return normalize(encode_tokens(self._model, tokens_NL).float(), dim=1)
        finally:
            hook.remove()


def prompt_loss(embeds_BD: Tensor, texts_KD: Tensor, classes_B: Tensor) -> Tensor:
    """Return the cross entropy over seen classes of 100 times the cosines, the mean of a batch."""
    return cross_entropy(LOGIT_SCALE * embeds_BD @ texts_KD.T, classes_B)


def _room(clip: Clip, count: int) -> PromptedNames:
    """Return the layout of prompts with a context of `count` vectors."""
    width = getattr(getattr(text_tower(clip.model), "token_embedding", None), "embedding_dim", 1)
    empty = LearnedPrompt.of({"prefix_prompt": np.zeros((count, width), np.float32)}, "the context")
    return clip.prompted(empty)
