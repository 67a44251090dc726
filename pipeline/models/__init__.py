"""The registries of proposers and classifiers: plain dicts of lazily imported entries.

Adding a model is one new file that defines an entry, and one line here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Proposals:
    """Class-agnostic regions of one image, over a grid that covers the *padded* image.

    `query_embeds_QD` (unit length) and `void_logits_Q` (scaled cosine with the no-object vector)
    are None for proposers without a query classification head.
    """

    mask_logits_Qhw: "Tensor"
    query_embeds_QD: "Tensor | None" = None
    void_logits_Q: "Tensor | None" = None


@dataclass(frozen=True)
class ProposerCard:
    """What must be known of a proposer before it is loaded."""

    short_edge: int
    long_edge: int
    divisor: int  # images are padded to a multiple of this
    embedding_dim: int | None  # of its query head; None: it has none
    weights_sha256: str | None  # None: it has no weights
    licence: str


class Proposer(Protocol):
    """Arrays in, proposals out."""

    def propose(self, images: Sequence[NDArray[np.uint8]]) -> list[Proposals]:
        """Return the proposals of RGB images (H, W, 3) that share one padded size."""


@dataclass(frozen=True)
class ProposerEntry:
    """One line of the registry: how to describe and how to load a proposer."""

    summary: str
    describe: Callable[[str | None], ProposerCard]  # weights -> card, loading no model
    load: Callable[[str | None, str], Proposer]  # weights, device -> proposer


@dataclass(frozen=True)
class RegionEmbeds:
    """CLIP's unit vectors (V, D) of the valid proposals of one image, in order."""

    valid_Q: "Tensor"
    clip_embeds_VD: "Tensor"


class RegionEmbedder(Protocol):
    """Images and soft masks in, one CLIP vector per valid proposal out."""

    def embed(self, regions: Iterable[tuple["Tensor", "Tensor"]]) -> list[RegionEmbeds]:
        """Take (image_3HW uint8, mask_probs_QHW) pairs; hold no pair longer than needed."""


@dataclass(frozen=True)
class ClassifierEntry:
    """One line of the registry: how to load a region classifier."""

    summary: str
    load: Callable[..., RegionEmbedder]


def _lazy(module: str, name: str) -> Callable[[], Any]:
    return lambda: getattr(import_module(module), name)


PROPOSERS: Mapping[str, Callable[[], ProposerEntry]] = {
    "maskformer": _lazy("pipeline.models.maskformer_proposer", "MASKFORMER"),
    "felzenszwalb": _lazy("pipeline.models.felzenszwalb", "FELZENSZWALB"),
}

CLASSIFIERS: Mapping[str, Callable[[], ClassifierEntry]] = {
    "crops": _lazy("pipeline.models.crop_classifier", "CROPS"),
}


def find_proposer(name: str) -> ProposerEntry:
    """Return the registry entry; raises ModelError that lists what there is."""
    if name not in PROPOSERS:
        raise ModelError(f"there is no proposer {name!r}; there are {', '.join(sorted(PROPOSERS))}")
    return PROPOSERS[name]()


def find_classifier(name: str) -> ClassifierEntry:
    """Return the registry entry; raises ModelError that lists what there is."""
    if name not in CLASSIFIERS:
        known = ", ".join(sorted(CLASSIFIERS))
        raise ModelError(f"there is no classifier {name!r}; there are {known}")
    return CLASSIFIERS[name]()
