"""The registries of proposers and classifiers: plain dicts of lazily imported entries.

Adding a model is one new file that defines an entry, and one line here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.resize import Size
from schemas.errors import ModelError, VocabularyError
from schemas.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.masks import SoftMasks
    from pipeline.models.clip import Clip, ClipSource
    from schemas.annotate_config import ClassifierSettings

_NAMED: Final = 5  # classes named in one message


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
    seen_classes: tuple[str, ...] = ()  # names it was trained on; empty: it does not record them
    proposes_masks: bool = True  # False: pixel embeddings instead, and `embedding_dim` is theirs


class Proposer(Protocol):
    """Arrays in, proposals out."""

    def propose(self, images: Sequence[NDArray[np.uint8]]) -> list[Proposals]:
        """Return the proposals of RGB images (H, W, 3) that share one padded size."""


@runtime_checkable
class Lookup(Protocol):
    """Proposals that were made elsewhere: an image is known by its uri, not by its pixels."""

    def look_up(self, uri: str, size: Size, image_size: Size) -> Proposals:
        """Return the proposals of an image of original `size`, resized to `image_size`.

        Raises ValueError when there are none for it, or they do not fit.
        """


@runtime_checkable
class PixelEmbedder(Protocol):
    """Arrays in, embeddings of every pixel out; no regions are proposed."""

    def embed_pixels(self, images: Sequence[NDArray[np.uint8]]) -> "list[Tensor]":
        """Return embeddings (D, h, w), at stride 4 over the padded image, of any length.

        The RGB images (H, W, 3) share one padded size.
        """


@dataclass(frozen=True)
class ProposerEntry:
    """One line of the registry: how to describe and how to load a proposer."""

    summary: str
    describe: Callable[[str | None], ProposerCard]  # weights -> card, loading no model
    # weights, device -> proposer
    load: Callable[[str | None, str], Proposer | Lookup | PixelEmbedder]
    # Prepares a loaded proposer for half precision; None: it has no network that computes in it.
    lower: "Callable[[Any, torch.dtype], None] | None" = None
    # Says whether threads may call a loaded proposer side by side; None: they may not.
    is_reentrant: "Callable[[Any], bool] | None" = None
    # The same entry with Python modules to import first; None: it has no use for any.
    with_modules: "Callable[[tuple[str, ...]], ProposerEntry] | None" = None


@dataclass(frozen=True)
class RegionEmbeds:
    """CLIP's unit vectors (V, D) of the valid proposals of one image, in order."""

    valid_Q: "Tensor"
    clip_embeds_VD: "Tensor"


class RegionEmbedder(Protocol):
    """Images and soft masks in, one CLIP vector per valid proposal out."""

    def embed(self, regions: "Iterable[tuple[Tensor, Tensor | SoftMasks]]") -> list[RegionEmbeds]:
        """Take pairs of an image (3, H, W) uint8 and its masks; hold no pair longer than needed.

        Masks are soft, either (Q, H, W) or still to be made.
        """


@dataclass(frozen=True)
class ClassifierEntry:
    """One line of the registry: how to load a region classifier, and what its vectors depend on."""

    summary: str
    deciding: tuple[str, ...]  # names of the settings that its vectors depend on
    settings: "Callable[[ClassifierSettings], Any]"  # those, as `load` takes them
    # Raises ModelError for a CLIP, or settings, that it cannot do; loads nothing.
    check: "Callable[[ClipSource, ClassifierSettings], None]"
    # CLIP, settings, inputs per forward pass (None: what suits the device) -> classifier
    load: "Callable[[Clip, Any, int | None], RegionEmbedder]"


def _lazy(module: str, name: str) -> Callable[[], Any]:
    return lambda: getattr(import_module(module), name)


PROPOSERS: Mapping[str, Callable[[], ProposerEntry]] = {
    "maskformer": _lazy("pipeline.models.maskformer_proposer", "MASKFORMER"),
    "per-pixel": _lazy("pipeline.models.per_pixel", "PER_PIXEL"),
    "felzenszwalb": _lazy("pipeline.models.felzenszwalb", "FELZENSZWALB"),
    "selective-search": _lazy("pipeline.models.selective_search", "SELECTIVE_SEARCH"),
    "precomputed": _lazy("pipeline.models.precomputed", "PRECOMPUTED"),
    "contours": _lazy("pipeline.models.contours", "CONTOURS"),
    "transformers": _lazy("pipeline.models.universal_segmenter", "UNIVERSAL_SEGMENTER"),
    "sam2": _lazy("pipeline.models.sam", "SAM2"),
    "sam3": _lazy("pipeline.models.sam", "SAM3"),
    "detectron2": _lazy("pipeline.models.detectron2_proposer", "DETECTRON2"),
}

CLASSIFIERS: Mapping[str, Callable[[], ClassifierEntry]] = {
    "crops": _lazy("pipeline.models.crop_classifier", "CROPS"),
    "one-pass": _lazy("pipeline.models.one_pass", "ONE_PASS"),
    "pooling": _lazy("pipeline.models.pooling", "POOLING"),
}


def find_proposer(name: str, modules: tuple[str, ...] = ()) -> ProposerEntry:
    """Return the registry entry, which imports `modules` before it describes or loads.

    Raises ModelError that lists what there is, or where the proposer takes no modules.
    """
    if name not in PROPOSERS:
        raise ModelError(f"there is no proposer {name!r}; there are {', '.join(sorted(PROPOSERS))}")
    entry = PROPOSERS[name]()
    if not modules:
        return entry
    if entry.with_modules is None:
        raise ModelError(
            f"proposer {name} imports no modules; proposer_modules is {', '.join(modules)}"
        )
    return entry.with_modules(modules)


def refuse_unseen(proposer: str, card: ProposerCard, vocabulary: Vocabulary) -> None:
    """Raise VocabularyError when it flags a class seen that the proposer was not trained on.

    The flag raises the weight of the proposer's own score, which such a class has no right to. A
    class that was trained on and is not flagged is no error: to treat it as unseen is an ablation.
    """
    if not card.seen_classes:
        return
    wrong = vocabulary.flagged_seen_beyond(card.seen_classes)
    if wrong:
        more = ", ..." if len(wrong) > _NAMED else ""
        raise VocabularyError(
            f"the vocabulary flags {len(wrong)} classes seen that proposer {proposer!r} was not "
            f"trained on ({', '.join(wrong[:_NAMED])}{more}); it records {len(card.seen_classes)} "
            f"classes ({', '.join(card.seen_classes[:_NAMED])}, ...): flag others unseen, or give "
            "the name that it was trained with as a synonym"
        )


def find_classifier(name: str) -> ClassifierEntry:
    """Return the registry entry; raises ModelError that lists what there is."""
    if name not in CLASSIFIERS:
        known = ", ".join(sorted(CLASSIFIERS))
        raise ModelError(f"there is no classifier {name!r}; there are {known}")
    return CLASSIFIERS[name]()
