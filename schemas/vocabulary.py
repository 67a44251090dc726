"""The ordered list of class names that an annotation run labels with.

YAML:   classes:                        Text:   # one class per line
          - giraffe                             giraffe [unseen]
          - name: sofa                          sofa | couch | settee [seen]
            synonyms: [couch, settee]
            seen: true
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict

from schemas.errors import VocabularyError

_ENTRY_KEYS: Final = ("name", "synonyms", "seen")
_TEXT_FLAG: Final = re.compile(r"\[\s*([^\[\]]*?)\s*\]\s*$")


class VocabularyClass(BaseModel):
    """One class: the name that is written as label, other words for it, and whether it was seen.

    `seen` is None where the vocabulary does not say; the ensemble then treats it as unseen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    synonyms: tuple[str, ...] = ()
    seen: bool | None = None


class Vocabulary(BaseModel):
    """Ordered classes; a class index is the position here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[VocabularyClass, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> "Vocabulary":
        """Return a vocabulary of plain names without synonyms or flags."""
        return cls(classes=tuple(VocabularyClass(name=name) for name in names))

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in order."""
        return tuple(entry.name for entry in self.classes)

    @property
    def seen(self) -> tuple[bool, ...] | None:
        """Seen flag of every class, or None when no class carries a flag (spec 2.6)."""
        if all(entry.seen is None for entry in self.classes):
            return None
        return tuple(bool(entry.seen) for entry in self.classes)

    def flagged_seen_beyond(self, trained: Iterable[str]) -> tuple[str, ...]:
        """Return the names flagged seen of which `trained` has neither the name nor a synonym.

        Case and the width of blanks do not matter.
        """
        known = {_plain(name) for name in trained}
        return tuple(
            entry.name
            for entry in self.classes
            if entry.seen and known.isdisjoint(map(_plain, (entry.name, *entry.synonyms)))
        )


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Read a vocabulary file; `.yaml` and `.yml` are YAML, anything else is text.

    Raises VocabularyError that names the file and the line for a missing file, an empty list, an
    empty or repeated name, an unknown key, or a value of the wrong kind.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise VocabularyError(f"cannot read vocabulary {path}: {reason}") from None
    is_yaml = path.suffix.lower() in {".yaml", ".yml"}
    entries = _yaml_entries(text, path) if is_yaml else _text_entries(text, path)
    if not entries:
        raise VocabularyError(f"{path}: the vocabulary is empty; it needs at least one class name")
    _refuse_repeats(entries, path)
    return Vocabulary(classes=tuple(entry for _, entry in entries))


_Entries = list[tuple[int, VocabularyClass]]  # line number, class


def _fail(path: Path, line: int, problem: str) -> VocabularyError:
    return VocabularyError(f"{path}, line {line}: {problem}")


def _text_entries(text: str, path: Path) -> _Entries:
    entries: _Entries = []
    for line, raw in enumerate(text.split("\n"), start=1):
        content = raw.strip()
        if not content or content.startswith("#"):
            continue
        seen: bool | None = None
        if flag := _TEXT_FLAG.search(content):
            word = flag.group(1)
            if word not in {"seen", "unseen"}:
                raise _fail(path, line, f"unknown flag [{word}]; there are [seen] and [unseen]")
            seen = word == "seen"
            content = content[: flag.start()].strip()
        name, *synonyms = [part.strip() for part in content.split("|")]
        if not name or not all(synonyms):
            raise _fail(path, line, f"empty name in {raw.strip()!r}")
        entries.append((line, VocabularyClass(name=name, synonyms=tuple(synonyms), seen=seen)))
    return entries


def _yaml_entries(text: str, path: Path) -> _Entries:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _fail(path, line, f"not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:  # a control character
        line = text.count("\n", 0, error.position) + 1
        raise _fail(path, line, f"not valid YAML: {str(error).splitlines()[0]}") from None
    if root is None:
        return []
    if isinstance(root, yaml.MappingNode):
        root = _classes_node(root, path)
    if not isinstance(root, yaml.SequenceNode):
        raise _fail(path, _line(root), "expected a list of classes, or `classes:` with that list")
    return [(_line(node), _yaml_class(node, path)) for node in root.value]


def _classes_node(root: yaml.MappingNode, path: Path) -> yaml.Node:
    found: yaml.Node | None = None
    for key, value in root.value:
        if key.value != "classes":
            raise _fail(path, _line(key), f"unknown key {key.value!r}; only `classes` is known")
        if found is not None:
            raise _fail(path, _line(key), "key 'classes' is given twice")
        found = value
    if found is None:
        raise _fail(path, _line(root), "expected `classes:` with a list of classes")
    return found


def _yaml_class(node: yaml.Node, path: Path) -> VocabularyClass:
    if isinstance(node, yaml.ScalarNode):
        return VocabularyClass(name=_name(node, path))
    if not isinstance(node, yaml.MappingNode):
        raise _fail(path, _line(node), "a class is a name, or a mapping with `name`")
    values: dict[str, Any] = {}
    for key, value in node.value:
        if key.value not in _ENTRY_KEYS:
            known = ", ".join(_ENTRY_KEYS)
            raise _fail(path, _line(key), f"unknown key {key.value!r}; known keys are {known}")
        if key.value in values:
            raise _fail(path, _line(key), f"key {key.value!r} is given twice")
        if key.value == "name":
            values["name"] = _name(value, path)
        elif key.value == "synonyms":
            if not isinstance(value, yaml.SequenceNode):
                raise _fail(path, _line(value), "`synonyms` must be a list of names")
            values["synonyms"] = tuple(_name(item, path) for item in value.value)
        else:
            values["seen"] = _flag(value, path)
    if "name" not in values:
        raise _fail(path, _line(node), "a class needs a `name`")
    return VocabularyClass(**values)


def _flag(node: yaml.Node, path: Path) -> bool:
    words = yaml.SafeLoader.bool_values
    if node.tag != "tag:yaml.org,2002:bool" or str(node.value).lower() not in words:
        raise _fail(path, _line(node), f"`seen` must be true or false, not {node.value!r}")
    return bool(words[node.value.lower()])


def _name(node: yaml.Node, path: Path) -> str:
    # YAML reads `no`, `on` and `1984` as other types; a class name is always its text, except
    # for null, which is what an accidentally empty `name:` gives.
    is_null = node.tag == "tag:yaml.org,2002:null"
    if not isinstance(node, yaml.ScalarNode) or is_null or not node.value.strip():
        raise _fail(path, _line(node), "empty name" if is_null else "a name must be non-empty text")
    return str(node.value).strip()


def _refuse_repeats(entries: _Entries, path: Path) -> None:
    first_line: dict[str, int] = {}
    for line, entry in entries:
        for word in (entry.name, *entry.synonyms):
            if word in first_line:
                raise _fail(path, line, f"{word!r} was already given on line {first_line[word]}")
            first_line[word] = line


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
