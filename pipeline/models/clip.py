"""CLIP through open_clip: loading, text vectors, image vectors.

Dimension key: N prompts or crops, D embedding, S side of the square input.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline.models.device import PRECISIONS
from pipeline.models.embedded import EMBEDDED_CLIP
from pipeline.models.passes import crops_per_pass, in_passes
from pipeline.models.prompted_names import PromptedNames
from pipeline.models.text_tower import encode_tokens
from pipeline.models.weight_cache import local_copy
from pipeline.models.weights import TORCH_SUFFIXES, sha256_of
from pipeline.prompts import LearnedPrompt, Prompts, text_classifier
from schemas.errors import ModelError
from schemas.vocabulary import Vocabulary

_PROMPTS_PER_PASS: Final = 256
_REASON_CHARS: Final = 300
_MOST_TEMPLATES: Final = (
    8  # looked at apart: if these do not separate two names, eighty hardly will
)
_WEIGHT_SUFFIXES: Final = (".safetensors", *TORCH_SUFFIXES)


@dataclass(frozen=True)
class ClipCard:
    """What must be known of a CLIP before it is loaded."""

    embedding_dim: int
    weights_sha256: str | None  # None for a tag or a hub id, which name their content


@dataclass(frozen=True)
class ClipSource:
    """Where a CLIP comes from: an architecture and a tag or file, hf-hub:ID, or local-dir:PATH.

    `precision`, a key of PRECISIONS, is what the towers are held and computed in. `side` replaces
    the side of the square input that the model was trained with; positions are interpolated.
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

    def on_this_machine(self) -> "ClipSource":
        """Return the source with the path of a copy in the place of a URL; raises ModelError."""
        return replace(self, weights=local_copy(self.weights))

    def describe(self) -> ClipCard:
        """Return what must be known before loading; raises ModelError if it cannot be loaded."""
        self.check()
        embedding_dim = int(self.config()["embed_dim"])
        local = self.name.removeprefix("local-dir:") if self._is_local else self.weights
        path = Path(local) if local and (self._is_local or self._is_file) else None
        return ClipCard(embedding_dim, sha256_of(path) if path else None)

    def config(self) -> dict[str, Any]:
        """Return open_clip's config of the model.

        Raises ModelError when it cannot be read, when the input is not square, and when it can not
        have another side.
        """
        try:
            config: dict[str, Any] = open_clip.get_model_config(self.name)
            vision = config["vision_cfg"]
            size = vision.get("image_size", 224)  # open_clip's default
            sides = {size} if isinstance(size, int) else set(size)
            int(config["embed_dim"])
        except Exception as error:  # the hub client raises many types
            raise ModelError(f"cannot read the config of clip {self.name!r}: {error}") from None
        if len(sides) != 1:
            raise ModelError(
                f"clip {self.name!r} takes images of {' x '.join(map(str, size))}; crops are "
                "square, so that only a clip with a square input can classify them"
            )
        if isinstance(vision.get("layers"), list) and self.side not in (None, *sides):
            raise ModelError(
                f"clip {self.name!r} is a ResNet whose pooling is made for a side of {size}; "
                f"crop_side is {self.side}, and must be {size} or absent"
            )
        return config

    def overrides(self) -> dict[str, Any]:
        """Return what open_clip does not do by itself for these weights.

        An architecture's name does not tell the activation that a tag was trained with. A file
        does not tell mean and deviation of its images: they are what the tags of its architecture
        agree on, or else OpenAI's.
        """
        if self._is_local or self._is_hub:
            return {}
        if not self._is_file:
            tag = open_clip.get_pretrained_cfg(self.name, self.weights)
            return {"force_quick_gelu": bool(tag.get("quick_gelu"))}
        tags = [
            open_clip.get_pretrained_cfg(self.name, tag)
            for tag in open_clip.list_pretrained_tags_by_model(self.name)
        ]
        found = {(tuple(tag["mean"]), tuple(tag["std"])) for tag in tags}
        if len(found) != 1:
            return {}
        mean, std = found.pop()
        return {"force_preprocess_cfg": {"mean": mean, "std": std}}

    @property
    def _is_local(self) -> bool:
        return self.name.startswith("local-dir:")

    @property
    def _is_hub(self) -> bool:
        return self.name.startswith("hf-hub:")

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
        if self._is_hub:
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


def text_vectors(clip: "Clip", vocabulary: Vocabulary, prompts: Prompts) -> NDArray[np.float32]:
    """Return the unit text vectors (K, D) of a vocabulary, from templates or a learned prompt."""
    learned = prompts.learned
    if learned is None:
        return text_classifier(clip.encode_text, vocabulary, prompts.templates)
    return text_classifier(
        lambda names: clip.encode_names(names, learned), vocabulary, prompts.templates
    )


def template_vectors(clip: "Clip", vocabulary: Vocabulary, prompts: Prompts) -> NDArray[np.float32]:
    """Return unit vectors (T, K, D) of the names alone, in some templates apart or as learned."""
    learned, names = prompts.learned, vocabulary.names
    if learned is not None:
        return clip.encode_names(names, learned)[None]
    templates = prompts.templates[:: -(-len(prompts.templates) // _MOST_TEMPLATES)]
    texts = [template.replace("{}", name) for template in templates for name in names]
    return clip.encode_text(texts).reshape(len(templates), len(names), -1)


class Clip:
    """A frozen CLIP in evaluation mode; its vectors are fp32 whatever it computes in."""

    def __init__(self, model: nn.Module, tokenizer: Any, preprocess: dict[str, Any]) -> None:
        # open_clip ships no types, and encode_text and encode_image are not nn.Module's.
        self.model: Any = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        size = preprocess["size"]  # an int, or a pair that ClipSource knows to be square
        self.side: int = int(size if isinstance(size, int) else size[0])
        self.mean: tuple[float, ...] = tuple(preprocess["mean"])
        self.std: tuple[float, ...] = tuple(preprocess["std"])

    @classmethod
    def load(cls, source: ClipSource, device: str = "cpu") -> "Clip":
        """Load by open_clip; raises ModelError with the source's name when that fails."""
        source = source.on_this_machine()
        source.check()
        source.config()
        try:
            model = open_clip.create_model(
                source.name,
                pretrained=source.weights,
                force_image_size=source.side,
                require_pretrained=True,
                weights_only=True,
                **source.overrides(),
            )
            tokenizer = open_clip.get_tokenizer(source.name)
        except Exception as error:  # open_clip, hub client and torch raise many types
            weights = "its own weights" if source.weights is None else f"weights {source.weights!r}"
            reason = " ".join(str(error).split())[:_REASON_CHARS]
            raise ModelError(
                f"cannot load clip {source.name!r} with {weights}: {type(error).__name__}: {reason}"
            ) from error
        _lower(model, PRECISIONS[source.precision])
        return cls(model.to(device), tokenizer, open_clip.get_model_preprocess_cfg(model))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def logit_scale(self) -> float:
        """What the model learned to multiply its cosines by.

        The bias that a SigLIP adds to them is left out: it is the same for every class, and a
        softmax over classes does not see it.
        """
        return float(self.model.logit_scale.exp().mean())

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors (N, D) of the prompts."""
        return _in_passes(
            lambda texts: encode_tokens(self.model, self._tokenizer(texts).to(self.device)), prompts
        )

    @torch.inference_mode()
    def encode_names(self, names: Sequence[str], prompt: LearnedPrompt) -> NDArray[np.float32]:
        """Return unit vectors (N, D) of class names inside a learned prompt (spec 1.4).

        Raises ModelError when the prompt does not fit the text tower, or a name is too long.
        """
        return _in_passes(self.prompted(prompt).encode, names)

    def prompted(self, prompt: LearnedPrompt) -> PromptedNames:
        """Return a learned prompt together with this CLIP; raises ModelError if they do not fit."""
        return PromptedNames.of(self.model, self._tokenizer, prompt)

    def per_pass(self, side: int) -> int:
        """Return how many crops, or images of that side, go through the image tower at a time."""
        dtype = next(self.model.visual.parameters()).dtype
        crop_13SS = torch.zeros((1, 3, self.side, self.side), dtype=dtype, device=self.device)
        crops = crops_per_pass(self.model.visual, crop_13SS)
        return max(1, crops * self.side**2 // max(side, self.side) ** 2)

    @torch.inference_mode()
    def encode_crops(self, crops_N3SS: Tensor, batch: int, at_once: int = 1) -> Tensor:
        """Return unit vectors (N, D) of normalised crops, at most `batch` per forward pass.

        Up to `at_once` passes are made side by side, see `passes`.
        """
        dtype = next(self.model.visual.parameters()).dtype

        def encode(part_N3SS: Tensor) -> Tensor:
            return normalize(self.model.encode_image(part_N3SS.to(dtype)).float(), dim=1)

        parts = in_passes(encode, crops_N3SS, batch, at_once)
        return torch.cat(parts) if parts else crops_N3SS.new_zeros((0, 0))


def _lower(model: Any, dtype: torch.dtype) -> None:
    """Cast a whole model in place, whatever its towers are.

    open_clip's own casting leaves the normalisations of its own towers in float32, and with them
    breaks CoCa's and those of transformers. The scale stays: three digits of its logarithm would
    change it by a per cent.
    """
    scale = model.logit_scale.detach().clone()
    model.to(dtype)
    model.logit_scale.data = scale


def _in_passes(encode: Callable[[list[str]], Tensor], texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the features of all texts as unit vectors (N, D)."""
    parts = [
        normalize(encode(list(texts[start : start + _PROMPTS_PER_PASS])).float(), dim=1)
        for start in range(0, len(texts), _PROMPTS_PER_PASS)
    ]
    vectors: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    return vectors
