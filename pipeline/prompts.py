"""Prompt templates by name, and the text classifier made from them (spec 1.4).

Dimension key: K class names, D embedding.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import SettingsError
from schemas.vocabulary import Vocabulary

# The one of ImageNet's 80 that scored best on the paper's training data.
SINGLE: Final = ("a sculpture of a {}.",)

_SIZES: Final = ("small", "medium", "large")
VILD: Final = (
    *(f"a photo of a {size} {{}}." for size in _SIZES),
    *(f"This is a photo of a {size} {{}}." for size in _SIZES),
    *(f"There is a {size} {{}} in the scene." for size in _SIZES),
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
)


def _imagenet() -> tuple[str, ...]:
    from open_clip import OPENAI_IMAGENET_TEMPLATES  # heavy import, wanted by this set alone

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


TEMPLATE_SETS: Final[dict[str, Callable[[], tuple[str, ...]]]] = {
    "single": lambda: SINGLE,
    "vild": lambda: VILD,
    "imagenet": _imagenet,
}


def load_templates(prompts: str) -> tuple[str, ...]:
    """Return the templates of a named set, of one literal template, or of a text file of them.

    Raises SettingsError for an unknown name, a missing file, or a template without one `{}`.
    """
    if prompts in TEMPLATE_SETS:
        return TEMPLATE_SETS[prompts]()
    if "{" in prompts:
        return (_checked(prompts, "prompts"),)
    path = Path(prompts)
    if not path.is_file():
        raise SettingsError(
            f"prompts {prompts!r} is no template set ({', '.join(TEMPLATE_SETS)}), holds no {{}}, "
            "and is no file of templates"
        )
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise SettingsError(f"{prompts} holds no template")
    return tuple(_checked(line.strip(), f"{prompts}, line {number}") for number, line in numbered)


def _checked(template: str, where: str) -> str:
    rest = template.replace("{}", "", 1)
    if "{}" not in template or "{" in rest or "}" in rest:
        raise SettingsError(
            f"{where}: {template!r} must hold {{}} exactly once, for the class name"
        )
    return template


def text_classifier(
    encode_text: Callable[[Sequence[str]], NDArray[np.float32]],
    vocabulary: Vocabulary,
    templates: Sequence[str],
) -> NDArray[np.float32]:
    """Return unit text vectors (K, D): the mean of unit vectors over templates and synonyms.

    `encode_text` maps N prompts to unit vectors (N, D). A class with synonyms is the mean over
    all its words, each prompted with every template.
    """
    vectors = []
    for entry in vocabulary.classes:
        words = (entry.name, *entry.synonyms)
        prompts = [template.replace("{}", word) for word in words for template in templates]
        mean_D = encode_text(prompts).mean(axis=0)
        vectors.append(mean_D / np.linalg.norm(mean_D))
    return np.stack(vectors).astype(np.float32)
