"""Captions of the synthetic world: what they say, and which pictures they are true of.

A meaning is (kind, colour, form) as three small integers. In a caption -1 leaves an attribute open:
"a photo of a ring." means (thing, any colour, ring). A picture without colours has colour -2, which
no caption names. Held-out combinations are never named: a caption describes a class that a training
picture shows, in full or in part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic import COLOURS, NUM_THINGS, SHAPES, TEXTURES, VOCABULARY, seen_flags

OPEN = -1
COLOURLESS = -2
SIZES = ("small", "medium", "large")

TEMPLATES = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    *(f"a photo of a {size} {{}}." for size in SIZES),
    *(f"This is a photo of a {size} {{}}." for size in SIZES),
    *(f"There is a {size} {{}} in the scene." for size in SIZES),
    "a sculpture of a {}.",
    "{}",
    "a {}",
    "the {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "a painting of the {}.",
    "a rendering of a {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
    "a good photo of a {}.",
    "a bad photo of a {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a blurry photo of a {}.",
    "a low resolution photo of a {}.",
    "a toy {}.",
    "one {}",
    "here we see a {}.",
    "an image that shows a {}.",
    "itap of a {}.",
    "a {} in a picture",
)


def meaning(class_index: int) -> tuple[int, int, int]:
    """Return (kind, colour, form) of a class: kind 0 is a thing, 1 a ground."""
    words = VOCABULARY[class_index].split()
    colours = list(COLOURS)
    if class_index < NUM_THINGS:
        return 0, colours.index(words[0]), SHAPES.index(words[1])
    return 1, colours.index(words[1]), TEXTURES.index(words[0])


def make_caption(
    rng: np.random.Generator, class_index: int, *, is_colourless: bool = False
) -> tuple[str, tuple[int, int, int]]:
    """Return a caption for a picture of a class, and what it means.

    Half of the captions are partial; those of a picture without colours name its form alone.
    """
    kind, colour, form = meaning(class_index)
    draw = rng.random()
    if is_colourless or draw < 0.35:
        colour = OPEN
    elif draw < 0.5:
        form = OPEN
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    return template.format(_name(kind, colour, form)), (kind, colour, form)


def is_true_of(captions_N3: NDArray[np.int64], pictures_M3: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return (N, M): whether each caption's meaning holds for each picture's."""
    captions_N13 = captions_N3[:, None]
    agrees = (captions_N13 == OPEN) | (captions_N13 == pictures_M3[None])
    return np.asarray(agrees.all(-1))


def could_be_true_of(
    captions_N3: NDArray[np.int64], pictures_M3: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return (N, M): captions of a form alone, where that form never came in the picture's colour.

    That no cyan square was ever seen says nothing about whether a cyan thing may be square. Held
    against the picture, such a caption would teach that it may not.
    """
    met = {meaning(index) for index, seen in enumerate(seen_flags()) if seen}
    table = np.ones((2, len(COLOURS), max(len(SHAPES), len(TEXTURES))), bool)
    for kind, colour, form in met:
        table[kind, colour, form] = False
    kind_N1, colour_N1, form_N1 = (column[:, None] for column in captions_N3.T)
    kind_M, colour_M, _ = pictures_M3.T
    never_met = table[kind_M[None], np.maximum(colour_M, 0)[None], np.maximum(form_N1, 0)]
    names_form_alone = (colour_N1 == OPEN) & (form_N1 != OPEN)
    return np.asarray(names_form_alone & (kind_N1 == kind_M) & (colour_M >= 0) & never_met)


def _name(kind: int, colour: int, form: int) -> str:
    colour_word = list(COLOURS)[colour] if colour != OPEN else ""
    if kind == 0:
        words = (colour_word, SHAPES[form] if form != OPEN else "shape")
    else:
        words = (TEXTURES[form] if form != OPEN else "", f"{colour_word} ground".strip())
    return " ".join(word for word in words if word)
