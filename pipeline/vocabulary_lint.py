"""What is likely to go wrong with a vocabulary, before any image is labelled with it.

Distances are 1 - cosine of text vectors, and are judged by those of the vocabulary itself: how far
apart names lie differs from CLIP to CLIP.

Dimension key: T templates, K class names, D embedding.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.vocabulary import Vocabulary, VocabularyClass

Kind = Literal["duplicate", "inseparable", "hypernym", "near-synonym", "no-stuff"]

# A pair is nearly the same to CLIP when it is this much nearer than names and their neighbours
# usually are, or than names are at all.
_OF_NEIGHBOURS: Final = 0.4
_OF_ALL: Final = 0.1
# And cannot be told apart where that holds for every template.
_INSEPARABLE_OF_ALL: Final = 0.02
_INSEPARABLE: Final = 1e-4  # rounding of half precision
_ARTICLES: Final = {"a", "an", "the"}
# Head words of the classes that fill what things leave over (COCO-Stuff, ADE20K, Context).
_STUFF: Final = """
    background banner blanket brick building carpet ceiling cloud concrete counter curtain dirt
    earth fence field fabric floor flooring foliage forest fog furniture grass grassland gravel
    ground hill house ice land landscape lawn leaves marble metal mountain mud pavement plain plant
    platform playingfield railing railroad road rock rug river roof runway sand sea shrub sidewalk
    sky snow soil stage stone straw street terrain textile tile track tree vegetation wall wallpaper
    water waterfall wood
"""


@dataclass(frozen=True)
class Finding:
    """One weakness of a vocabulary, and what would mend it."""

    kind: Kind
    names: tuple[str, ...]  # none: of the vocabulary as a whole
    message: str
    suggestion: str


def lint_vocabulary(vocabulary: Vocabulary, text_vectors_TKD: NDArray[np.float32]) -> list[Finding]:
    """Return what is found, of each pair of names the worst; the worst kinds first.

    `text_vectors_TKD` are unit vectors of each name in each template.
    """
    if text_vectors_TKD.shape[1] != len(vocabulary):
        raise ValueError(f"{text_vectors_TKD.shape[1]} vectors for {len(vocabulary)} names")
    found: dict[tuple[int, int], Finding] = {}
    for pair, finding in _pairs(vocabulary, text_vectors_TKD):
        found.setdefault(pair, finding)
    order = ("duplicate", "inseparable", "hypernym", "near-synonym")
    findings = sorted(found.values(), key=lambda finding: order.index(finding.kind))
    return [*findings, *_missing_stuff(vocabulary)]


def _pairs(
    vocabulary: Vocabulary, text_vectors_TKD: NDArray[np.float32]
) -> Iterator[tuple[tuple[int, int], Finding]]:
    """Yield findings, worse ones of a pair before others."""
    classes = vocabulary.classes
    yield from _duplicates(classes)
    distances = _Distances.of(text_vectors_TKD)
    yield from _inseparable(classes, distances)
    yield from _hypernyms(classes)
    yield from _near_synonyms(classes, distances)


def _duplicates(
    classes: tuple[VocabularyClass, ...],
) -> Iterator[tuple[tuple[int, int], Finding]]:
    words: dict[tuple[str, ...], tuple[int, str]] = {}
    for index, entry in enumerate(classes):
        for word in (entry.name, *entry.synonyms):
            first, before = words.setdefault(_tokens(word), (index, word))
            if first != index:
                names = (classes[first].name, entry.name)
                yield (
                    (first, index),
                    Finding(
                        "duplicate",
                        names,
                        f"{before!r} and {word!r} are one name but for case, number, articles or "
                        "punctuation",
                        f"keep one class, with the other as its synonym: {_merged(*names)}",
                    ),
                )


def _hypernyms(classes: tuple[VocabularyClass, ...]) -> Iterator[tuple[tuple[int, int], Finding]]:
    tokens = [_tokens(entry.name) for entry in classes]
    known = {name: index for index, name in enumerate(tokens)}
    for narrow, name in enumerate(tokens):
        heads = [name[start:] for start in range(1, len(name))]
        if "-" in classes[narrow].name:  # COCO-Stuff puts the head first: wall-brick
            heads += [name[:end] for end in range(1, len(name))]
        for head in heads:
            wide = known.get(head)
            if wide is not None and wide != narrow:
                names = (classes[wide].name, classes[narrow].name)
                yield (
                    (min(wide, narrow), max(wide, narrow)),
                    Finding(
                        "hypernym",
                        names,
                        f"every {names[1]!r} is a {names[0]!r}: both are right, one is taken",
                        f"drop {names[0]!r}, or name what is left of it: 'other {names[0]}'",
                    ),
                )


@dataclass(frozen=True)
class _Distances:
    """Distances of all pairs, and what is usual among them."""

    pairs: list[tuple[int, int]]
    mean_P: NDArray[np.float64]  # of the mean vectors over templates, by pair
    best_P: NDArray[np.float64]  # under the template that tells the pair apart best
    usual: float
    usual_best: float
    usual_neighbour: float

    @classmethod
    def of(cls, text_vectors_TKD: NDArray[np.float32]) -> "_Distances":
        count = text_vectors_TKD.shape[1]
        rows, columns = np.triu_indices(count, 1)
        pairs = list(zip(rows.tolist(), columns.tolist(), strict=True))
        if not pairs:
            return cls([], np.zeros(0), np.zeros(0), 0.0, 0.0, 0.0)
        mean_KD = text_vectors_TKD.astype(np.float64).mean(axis=0)
        mean_KD /= np.linalg.norm(mean_KD, axis=1, keepdims=True)
        mean_KK = 1 - mean_KD @ mean_KD.T
        best_KK = np.max([1 - vectors @ vectors.T for vectors in text_vectors_TKD], axis=0)
        neighbours_K = (mean_KK + np.diag(np.full(count, np.inf))).min(axis=1)
        mean_P, best_P = mean_KK[rows, columns], best_KK[rows, columns].astype(np.float64)
        # Of two names the one pair is all there is: nothing is usual.
        usual = (np.median(mean_P), np.median(best_P), np.median(neighbours_K))
        return cls(pairs, mean_P, best_P, *(usual if count > 2 else (0.0, 0.0, 0.0)))


def _inseparable(
    classes: tuple[VocabularyClass, ...], distances: _Distances
) -> Iterator[tuple[tuple[int, int], Finding]]:
    limit = max(_INSEPARABLE, _INSEPARABLE_OF_ALL * distances.usual_best)
    for pair, distance in zip(distances.pairs, distances.best_P, strict=True):
        if distance < limit:
            names = (classes[pair[0]].name, classes[pair[1]].name)
            yield (
                pair,
                Finding(
                    "inseparable",
                    names,
                    f"no prompt separates {names[0]!r} from {names[1]!r} for this CLIP "
                    f"(distance {distance:.4f} at best; usual are {distances.usual_best:.3f})",
                    f"merge them: {_merged(*names)}; or use words that this CLIP knows",
                ),
            )


def _near_synonyms(
    classes: tuple[VocabularyClass, ...], distances: _Distances
) -> Iterator[tuple[tuple[int, int], Finding]]:
    limit = max(_OF_NEIGHBOURS * distances.usual_neighbour, _OF_ALL * distances.usual)
    for pair, distance in zip(distances.pairs, distances.mean_P, strict=True):
        if distance < limit:
            names = (classes[pair[0]].name, classes[pair[1]].name)
            yield (
                pair,
                Finding(
                    "near-synonym",
                    names,
                    f"{names[0]!r} and {names[1]!r} mean nearly the same to this CLIP (distance "
                    f"{distance:.4f}; to the nearest name it is usually "
                    f"{distances.usual_neighbour:.3f})",
                    f"merge them: {_merged(*names)}; or say how they differ in their names",
                ),
            )


def _missing_stuff(vocabulary: Vocabulary) -> list[Finding]:
    words = [word for entry in vocabulary.classes for word in (entry.name, *entry.synonyms)]
    heads = {_tokens(word)[-1] for word in words}
    heads |= {_tokens(word)[0] for word in words if "-" in word}
    if not words or heads & {_singular(word) for word in _STUFF.split()}:
        return []
    return [
        Finding(
            "no-stuff",
            (),
            "all classes are things: sky, walls, floors and roads will be given the name of the "
            "thing that comes nearest",
            "add what surrounds the things, as sky, wall, floor, road, grass, water; or set "
            "--min-score and leave it without a label",
        )
    ]


def _merged(name: str, other: str) -> str:
    return f"{name} | {other}"


def _tokens(name: str) -> tuple[str, ...]:
    words = [word for word in re.split(r"[^\w]+|_", name.casefold()) if word]
    kept = [word for word in words if word not in _ARTICLES] or words
    return tuple(_singular(word) for word in kept) or (name,)


def _singular(word: str) -> str:
    """Return an English word without its regular plural; names are compared, nothing more."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
