"""CLIP through open_clip: loading, text vectors, image vectors.

Dimension key: N prompts or crops, D embedding, S side of the square input, L tokens of a prompt,
W width of the text tower.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline.models.embedded import EMBEDDED_CLIP
from pipeline.models.weights import sha256_of
from pipeline.prompts import LearnedPrompt, Prompts, text_classifier
from schemas.errors import ModelError
from schemas.vocabulary import Vocabulary

_PROMPTS_PER_PASS: Final = 256
_WEIGHT_SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class ClipCard:
    """What must be known of a CLIP before it is loaded."""

    embedding_dim: int
    weights_sha256: str | None  # None for a tag or a hub id, which name their content


@dataclass(frozen=True)
class ClipSource:
    """Where a CLIP comes from: an architecture and a tag or file, hf-hub:ID, or local-dir:PATH.

    `precision` is open_clip's: fp32, bf16 or fp16. `side` replaces the side of the square input
    that the model was trained with; positions are then interpolated.
    """

    name: str
    weights: str | None = None
    precision: str = "fp32"
    side: int | None = None

    @classmethod
    def of(
        cls, name: str, weights: str | None, precision: str = "fp32", side: int | None = None
    ) -> "ClipSource":
        """Return the source of a setting; `embedded` is the tiny CLIP that Segmill carries."""
        full_name = f"local-dir:{EMBEDDED_CLIP}" if name == "embedded" else name
        return cls(full_name, weights, precision, side)

    def describe(self) -> ClipCard:
        """Return what must be known before loading; raises ModelError if it cannot be loaded."""
        self.check()
        try:
            embedding_dim = int(open_clip.get_model_config(self.name)["embed_dim"])
        except Exception as error:  # the hub client raises many types
            raise ModelError(f"cannot read the config of clip {self.name!r}: {error}") from None
        local = self.name.removeprefix("local-dir:") if self._is_local else self.weights
        path = Path(local) if local and (self._is_local or self._is_file) else None
        return ClipCard(embedding_dim, sha256_of(path) if path else None)

    @property
    def _is_local(self) -> bool:
        return self.name.startswith("local-dir:")

    @property
    def _is_file(self) -> bool:
        return self.weights is not None and self.weights.endswith(_WEIGHT_SUFFIXES)

    def check(self) -> None:
        """Raise ModelError unless this names something that can be loaded; loads nothing."""
        if self._is_local:
            config = Path(self.name.removeprefix("local-dir:")) / "open_clip_config.json"
            if not config.is_file():
                raise ModelError(f"clip {self.name!r}: there is no {config}")
            return self._refuse_weights()
        if self.name.startswith("hf-hub:"):
            return self._refuse_weights()
        if self.name not in open_clip.list_models():
            raise ModelError(
                f"clip {self.name!r} is no architecture of open_clip; "
                f"it has {_nearest(self.name, open_clip.list_models())} and others, and "
                "hf-hub:ORG/NAME and local-dir:PATH are read too"
            )
        if self.weights is None:
            raise ModelError(f"clip {self.name!r} needs clip_weights: a tag or a file")
        if self._is_file:
            if not Path(self.weights).is_file():
                raise ModelError(f"clip_weights {self.weights!r}: there is no such file")
            return None
        tags = open_clip.list_pretrained_tags_by_model(self.name)
        if self.weights not in tags:
            raise ModelError(
                f"clip_weights {self.weights!r} is no file ({', '.join(_WEIGHT_SUFFIXES)}) and no "
                f"tag of {self.name}; its tags are {', '.join(tags) or 'none'}"
            )
        return None

    def _refuse_weights(self) -> None:
        if self.weights is not None:
            raise ModelError(
                f"clip {self.name!r} brings its own weights; clip_weights must be absent"
            )


def _nearest(name: str, known: Sequence[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3])


_Slot = tuple[int, NDArray[np.float32] | None]  # a token, and the vector that replaces its own


@dataclass(frozen=True)
class _Place:
    """A forward hook of the token embedding that puts learned vectors in their places."""

    is_learned_NL1: Tensor
    vectors_NLW: Tensor

    def __call__(self, module: nn.Module, tokens: tuple[Tensor, ...], embeds_NLW: Tensor) -> Tensor:
        return torch.where(self.is_learned_NL1, self.vectors_NLW.to(embeds_NLW.dtype), embeds_NLW)


def text_vectors(clip: "Clip", vocabulary: Vocabulary, prompts: Prompts) -> NDArray[np.float32]:
    """Return the unit text vectors (K, D) of a vocabulary, from templates or a learned prompt."""
    learned = prompts.learned
    if learned is None:
        return text_classifier(clip.encode_text, vocabulary, prompts.templates)
    return text_classifier(
        lambda names: clip.encode_names(names, learned), vocabulary, prompts.templates
    )


class Clip:
    """A frozen CLIP in evaluation mode; its vectors are fp32 whatever it computes in."""

    def __init__(self, model: nn.Module, tokenizer: Any, preprocess: dict[str, Any]) -> None:
        # open_clip ships no types, and encode_text and encode_image are not nn.Module's.
        self.model: Any = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        size = preprocess["size"]
        self.side: int = int(size if isinstance(size, int) else size[0])
        self.mean: tuple[float, ...] = tuple(preprocess["mean"])
        self.std: tuple[float, ...] = tuple(preprocess["std"])

    @classmethod
    def load(cls, source: ClipSource, device: str = "cpu") -> "Clip":
        """Load by open_clip; raises ModelError with the source's name when that fails."""
        source.check()
        try:
            model = open_clip.create_model(
                source.name,
                pretrained=source.weights,
                precision=source.precision,
                force_image_size=source.side,
                device=device,
                require_pretrained=True,
                weights_only=True,
            )
            tokenizer = open_clip.get_tokenizer(source.name)
        except Exception as error:  # open_clip, hub client and torch raise many types
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ModelError(
                f"cannot load clip {source.name!r} with weights {source.weights!r}: "
                f"{type(error).__name__}: {reason}"
            ) from error
        return cls(model, tokenizer, open_clip.get_model_preprocess_cfg(model))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def logit_scale(self) -> float:
        """What the model learned to multiply its cosines by."""
        return float(self.model.logit_scale.exp().mean())

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors (N, D) of the prompts."""
        parts = []
        for start in range(0, len(prompts), _PROMPTS_PER_PASS):
            tokens = self._tokenizer(list(prompts[start : start + _PROMPTS_PER_PASS]))
            parts.append(normalize(self.model.encode_text(tokens.to(self.device)).float(), dim=1))
        vectors: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def encode_names(self, names: Sequence[str], prompt: LearnedPrompt) -> NDArray[np.float32]:
        """Return unit vectors (N, D) of class names inside a learned prompt (spec 1.4).

        The sequence is start, prefix, name, suffix, full stop, end, padding; positions are added
        to it as to any text, and the feature is read at the end token. Raises ModelError when
        the prompt is of another width than the text tower, or a name is too long for it.
        """
        tower = getattr(self.model, "text", self.model)
        if "argmax" not in (getattr(tower, "pool_type", ""), getattr(tower, "text_pool_type", "")):
            raise ModelError("a learned prompt needs a clip that reads its text at the end token")
        embedding: nn.Embedding = tower.token_embedding
        if prompt.width != embedding.embedding_dim:
            raise ModelError(
                f"the learned prompt has vectors of {prompt.width} dimensions, the text tower of "
                f"the clip {embedding.embedding_dim}; a prompt fits the clip it was learned with"
            )
        rows = [self._slots(name, prompt) for name in names]
        parts = [
            self._encode_slots(rows[start : start + _PROMPTS_PER_PASS], embedding)
            for start in range(0, len(rows), _PROMPTS_PER_PASS)
        ]
        vectors: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return vectors

    def _encode_slots(self, rows: Sequence[list[_Slot]], embedding: nn.Embedding) -> Tensor:
        tokens_NL = torch.tensor([[token for token, _ in row] for row in rows])
        learned_NL1 = torch.tensor([[[vector is not None] for _, vector in row] for row in rows])
        none_W = np.zeros(embedding.embedding_dim, np.float32)
        vectors_NLW = np.stack(
            [[none_W if vector is None else vector for _, vector in row] for row in rows]
        )
        place = _Place(learned_NL1.to(self.device), torch.from_numpy(vectors_NLW).to(self.device))
        hook = embedding.register_forward_hook(place)
        try:
            return normalize(self.model.encode_text(tokens_NL.to(self.device)).float(), dim=1)
        finally:
            hook.remove()

    def _slots(self, name: str, prompt: LearnedPrompt) -> list[_Slot]:
        """Return the sequence of one class name, as long as the text tower's context."""
        start, *words, end = self._word_ids(name)
        stop = self._word_ids(".")[-2]  # some tokenizers put a word boundary before it
        signals = prompt.signals
        slots: list[_Slot] = [
            (start, signals.get("start_signal")),
            *((0, vector) for vector in prompt.prefix_PW),
            *((word, None) for word in words),
            *((0, vector) for vector in prompt.suffix_PW),
            (stop, signals.get("dot_signal")),
            (end, signals.get("end_signal")),
        ]
        free = self._tokenizer.context_length - len(slots)
        if free < 0:
            raise ModelError(
                f"class {name!r} is at least {-free} tokens too long for the learned prompt"
            )
        return slots + [(0, signals.get("pad_signal"))] * free

    def _word_ids(self, text: str) -> list[int]:
        """Return the token ids from the start to the end token, which has the highest id."""
        ids = self._tokenizer([text])[0]
        return list(map(int, ids[: int(ids.argmax()) + 1]))

    @torch.inference_mode()
    def encode_crops(self, crops_N3SS: Tensor, batch: int) -> Tensor:
        """Return unit vectors (N, D) of normalised crops, `batch` per forward pass."""
        dtype = next(self.model.visual.parameters()).dtype
        parts = [
            normalize(
                self.model.encode_image(crops_N3SS[start : start + batch].to(dtype)).float(), dim=1
            )
            for start in range(0, len(crops_N3SS), batch)
        ]
        return torch.cat(parts) if parts else crops_N3SS.new_zeros((0, 0))
