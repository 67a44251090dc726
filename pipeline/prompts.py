"""Prompts: templates by name, learned vectors from a file, and the text classifier (spec 1.4).

Dimension key: K class names, D embedding, P vectors of a prompt, W width of the text tower.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from schemas.errors import ModelError, SettingsError
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
    try:
        lines = Path(prompts).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise SettingsError(f"prompts {prompts!r}: the file is not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"prompts {prompts!r} is no template set ({', '.join(TEMPLATE_SETS)}), holds no {{}}, "
            f"and is no readable file of templates ({reason})"
        ) from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise SettingsError(f"{prompts} holds no template")
    return tuple(_checked(line.strip(), f"{prompts}, line {number}") for number, line in numbered)


# What a learned prompt is made of: vectors before and after the class name, and the embeddings of
# the special tokens around them, which are CLIP's own where a file leaves them out.
PROMPT_VECTORS: Final = ("prefix_prompt", "suffix_prompt")
PROMPT_SIGNALS: Final = ("start_signal", "dot_signal", "end_signal", "pad_signal")

# With a learned prompt the class name is all the text there is.
NAME_ALONE: Final = ("{}",)


@dataclass(frozen=True, eq=False)
class LearnedPrompt:
    """Vectors that stand around every class name, as the input of one CLIP's text tower."""

    prefix_PW: NDArray[np.float32]
    suffix_PW: NDArray[np.float32]
    signals: Mapping[str, NDArray[np.float32]]  # by their names in PROMPT_SIGNALS, each (W,)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.floating]], source: str) -> "LearnedPrompt":
        """Check and take the arrays of a prompt; raises SettingsError that names what is wrong."""
        problems = [
            f"unexpected {name}" for name in arrays if name not in PROMPT_VECTORS + PROMPT_SIGNALS
        ]
        if "prefix_prompt" not in arrays:
            problems.append("missing prefix_prompt")
        widths = {array.shape[-1] for array in arrays.values() if array.ndim}
        if len(widths) != 1 or any(array.ndim > 2 for array in arrays.values()):
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            problems.append(f"vectors of one width wanted, got {shapes or 'none'}")
        if problems:
            raise SettingsError(f"{source} holds no learned prompt: {'; '.join(problems)}")
        width = widths.pop()
        floats = {name: array.astype(np.float32) for name, array in arrays.items()}
        return cls(
            prefix_PW=floats["prefix_prompt"].reshape(-1, width),
            suffix_PW=floats.get("suffix_prompt", np.zeros(0, np.float32)).reshape(-1, width),
            signals={name: floats[name].reshape(-1) for name in PROMPT_SIGNALS if name in floats},
        )

    @property
    def width(self) -> int:
        """Width of the text tower that it was learned for."""
        return int(self.prefix_PW.shape[1])

    def save(self, file: str | Path) -> None:
        """Write a .safetensors file that `load_prompts` reads."""
        arrays = {"prefix_prompt": self.prefix_PW, "suffix_prompt": self.suffix_PW, **self.signals}
        save_file({name: array for name, array in arrays.items() if array.size}, file)


@dataclass(frozen=True)
class Prompts:
    """Templates with one `{}` each; with a learned prompt, the class name alone."""

    templates: tuple[str, ...]
    learned: LearnedPrompt | None = None
    sha256: str | None = None  # of the file of the learned prompt

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells these prompts from others: the templates, or the hash of learned vectors."""
        return self.templates if self.sha256 is None else (self.sha256,)


def load_prompts(prompts: str) -> Prompts:
    """Return what `load_templates` does, or the learned prompt of a .safetensors file.

    The file may be one that `segmill weights convert` or training wrote, or the prompt of a
    checkpoint of the authors under its own names. Raises SettingsError.
    """
    if not prompts.endswith(".safetensors"):
        return Prompts(load_templates(prompts))
    try:
        data = Path(prompts).read_bytes()
        arrays = load(data)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"cannot read the learned prompt {prompts!r}: {reason}") from None
    learners = {name.rpartition(".")[0] for name in arrays if name.endswith(".prefix_prompt")}
    if len(learners) > 1:
        raise SettingsError(f"{prompts} holds several learned prompts: {sorted(learners)}")
    start = f"{learners.pop()}." if learners else ""
    own = {
        name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)
    }
    learned = LearnedPrompt.of(own, prompts)
    return Prompts(NAME_ALONE, learned, hashlib.sha256(data).hexdigest())


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
    all its words, each prompted with every template. Raises ModelError for vectors with NaN.
    """
    vectors = []
    for entry in vocabulary.classes:
        words = (entry.name, *entry.synonyms)
        prompts = [template.replace("{}", word) for word in words for template in templates]
        mean_D = encode_text(prompts).mean(axis=0)
        if not np.isfinite(mean_D).all():
            raise ModelError(
                f"CLIP's text vector of {entry.name!r} has numbers that are not finite: its "
                "weights are broken"
            )
        vectors.append(mean_D / np.linalg.norm(mean_D))
    return np.stack(vectors).astype(np.float32)
