"""Reading class lists: what is accepted, and that every complaint names the line."""

import pytest

from schemas.errors import VocabularyError
from schemas.vocabulary import Vocabulary, VocabularyClass, read_vocabulary

SOFA = VocabularyClass(name="sofa", synonyms=("couch", "settee"), seen=True)
CAT = VocabularyClass(name="black cat", seen=False)
DOG = VocabularyClass(name="dog")


@pytest.fixture
def read(tmp_path):
    def write_and_read(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_vocabulary(path)

    return write_and_read


@pytest.mark.parametrize(
    "name, content",
    [
        (
            "c.yaml",
            "classes:\n"
            "  - name: sofa\n    synonyms: [couch, settee]\n    seen: true\n"
            "  - {name: black cat, seen: false}\n"
            "  - dog\n",
        ),
        (
            "c.yml",
            "- {seen: yes, name: sofa, synonyms: [couch, settee]}\n"
            "- {name: black cat, seen: no}\n"
            "- dog\n",
        ),
        (
            "c.YAML",
            "\ufeff- {name: sofa, synonyms: [couch, settee], seen: on}\n"
            "- {name: ' black cat ', seen: off}\n"
            "- dog\n",
        ),
        ("c.txt", "# ours\n\nsofa | couch|settee [seen]\n  black cat   [ unseen ]\r\ndog"),
        ("c", "\ufeffsofa|couch|settee[seen]\nblack cat [unseen]\ndog\n"),
    ],
    ids=["yaml mapping", "yaml list", "yaml with a mark", "text", "no suffix is text"],
)
def test_yaml_and_text_give_the_same_vocabulary(read, name, content):
    assert read(name, content).classes == (SOFA, CAT, DOG)


def test_names_are_text_even_where_yaml_reads_something_else(read):
    vocabulary = read("c.yaml", "- no\n- on\n- 1984\n- 3.10\n- true\n- ~tilde\n- 2024-01-01\n")
    assert vocabulary.names == ("no", "on", "1984", "3.10", "true", "~tilde", "2024-01-01")


@pytest.mark.parametrize(
    "content, names",
    [
        ("wall-concrete\nroad, route\n", ("wall-concrete", "road, route")),
        ("naïve café\n猫\n", ("naïve café", "猫")),
        ("Cat\ncat\n", ("Cat", "cat")),
        ("one\n", ("one",)),
    ],
    ids=["hyphens and commas", "not ascii", "case is kept", "a single class"],
)
def test_names_are_kept_verbatim(read, content, names):
    assert read("c.txt", content).names == names


@pytest.mark.parametrize(
    "content, expected",
    [
        ("a\nb\n", None),
        ("a [seen]\nb\n", (True, False)),
        ("a [unseen]\nb [unseen]\n", (False, False)),
    ],
    ids=["no flag at all", "a class without flag is unseen", "flags that are all false"],
)
def test_flags_are_absent_or_one_per_class(read, content, expected):
    assert read("c.txt", content).seen == expected


def test_a_flag_is_held_against_the_names_that_were_trained(read):
    lines = "cat [seen]", "SOFA | Couch [seen]", "pot  plant[seen]", "dog", "tree [unseen]"
    vocabulary = read("c.txt", "\n".join(lines))
    assert vocabulary.flagged_seen_beyond(["couch", "Pot plant", "bird"]) == ("cat",)
    assert vocabulary.flagged_seen_beyond(["cat", "sofa", "pot plant"]) == ()
    assert vocabulary.flagged_seen_beyond([]) == ("cat", "SOFA", "pot  plant")


@pytest.mark.parametrize(
    "content, line, words",
    [
        ("- a\n- b\n- a\n", 3, ["'a'", "line 1"]),
        ("- {name: a, synonyms: [b]}\n- b\n", 2, ["'b'", "line 1"]),
        ("- a\n- {name: b, synonyms: [c, c]}\n", 2, ["'c'"]),
        ("- a\n- ''\n", 2, ["non-empty"]),
        ("- a\n-\n- b\n", 2, ["empty name"]),
        ("- a\n- name:\n", 2, ["empty name"]),
        ("- a\n- {seen: true}\n", 2, ["needs a `name`"]),
        ("- name: a\n  synonyms:\n  - ok\n  - ''\n", 4, ["non-empty"]),
        ("- name: a\n  synonyms: b\n", 2, ["list of names"]),
        ("- name: a\n  synonyms:\n  - [b]\n", 3, ["non-empty text"]),
        ("- name: a\n  colour: red\n", 2, ["'colour'", "name, synonyms, seen"]),
        ("- name: a\n  name: b\n", 2, ["'name'", "twice"]),
        ("- name: a\n  seen: maybe\n", 2, ["'maybe'", "true or false"]),
        ("- name: a\n  seen: 1\n", 2, ["'1'", "true or false"]),
        ("- name: a\n  seen: !!bool maybe\n", 2, ["'maybe'", "true or false"]),
        ("- name: a\n  seen: !!bool [yes]\n", 2, ["true or false"]),
        ("- [a, b]\n", 1, ["a class is a name"]),
        ("names: [a]\n", 1, ["'names'", "classes"]),
        ("classes: [a]\nversion: 2\n", 2, ["'version'"]),
        ("classes: [a]\nclasses: [b]\n", 2, ["'classes'", "twice"]),
        ("classes:\n", 1, ["list"]),
        ("classes: {a: b}\n", 1, ["list"]),
        ("{}\n", 1, ["classes"]),
        ("just text\n", 1, ["list"]),
        ("- a\n- 'b\n", 3, ["not valid YAML"]),
        ("- a\n- b: c: d\n", 2, ["not valid YAML"]),
        ("- a\n- *nowhere\n", 2, ["not valid YAML"]),
        ("- a\n---\n- b\n", 2, ["not valid YAML"]),
        ("- a\n- b\x00\n", 2, ["not valid YAML"]),
    ],
    ids=[
        "repeated name",
        "name repeats a synonym",
        "synonym repeats a synonym",
        "empty text",
        "empty entry",
        "empty value",
        "flag without name",
        "empty synonym",
        "synonyms are one word",
        "synonym is a list",
        "unknown key",
        "repeated key",
        "flag is a word",
        "flag is a number",
        "flag claims to be boolean",
        "flag claims that a list is boolean",
        "class is a list",
        "unknown top key",
        "second top key",
        "classes twice",
        "classes without value",
        "classes is a mapping",
        "empty mapping",
        "scalar",
        "open quote",
        "two colons",
        "unknown alias",
        "two documents",
        "control character",
    ],
)
def test_a_wrong_yaml_vocabulary_names_file_and_line(read, content, line, words):
    with pytest.raises(VocabularyError) as caught:
        read("c.yaml", content)
    message = str(caught.value)
    assert f"c.yaml, line {line}: " in message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "content, line, words",
    [
        ("a\n\n# more\na\n", 4, ["'a'", "line 1"]),
        ("a | b\nb\n", 2, ["'b'", "line 1"]),
        ("a\nb [maybe]\n", 2, ["[maybe]", "[seen]", "[unseen]"]),
        ("a\nb [Seen]\n", 2, ["[Seen]"]),
        ("a []\n", 1, ["unknown flag"]),
        ("a\n[seen]\n", 2, ["empty name"]),
        ("a\n| b\n", 2, ["empty name"]),
        ("a | | b\n", 1, ["empty name"]),
        ("a |\n", 1, ["empty name"]),
        ("a\x0cb\n\nb [x]\n", 3, ["[x]"]),
    ],
    ids=[
        "repeated name",
        "name repeats a synonym",
        "unknown flag",
        "flags are lower case",
        "empty flag",
        "flag without name",
        "no name before a synonym",
        "empty synonym",
        "no synonym after the bar",
        "a form feed starts no line",
    ],
)
def test_a_wrong_text_vocabulary_names_file_and_line(read, content, line, words):
    with pytest.raises(VocabularyError) as caught:
        read("c.txt", content)
    message = str(caught.value)
    assert f"c.txt, line {line}: " in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("c.yaml", "", "empty"),
        ("c.yaml", "# nothing\n", "empty"),
        ("c.yaml", "[]\n", "empty"),
        ("c.yaml", "classes: []\n", "empty"),
        ("c.txt", "", "empty"),
        ("c.txt", "\n# nothing\n", "empty"),
        ("c.txt", b"caf\xe9\n", "not UTF-8"),
        ("c.yaml", b"- caf\xe9\n", "not UTF-8"),
        ("c.yaml", b"\xff\xfe-\x00 \x00a\x00", "not UTF-8"),
    ],
    ids=[
        "no bytes, yaml",
        "comment only, yaml",
        "empty list",
        "empty list of classes",
        "no bytes, text",
        "comment only, text",
        "latin-1 text",
        "latin-1 yaml",
        "utf-16",
    ],
)
def test_a_file_without_classes_or_text_is_named(read, name, content, problem):
    with pytest.raises(VocabularyError, match=rf"{name}.*{problem}"):
        read(name, content)


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(VocabularyError, match=r"absent\.yaml: No such file"):
        read_vocabulary(tmp_path / "absent.yaml")
    with pytest.raises(VocabularyError, match="Is a directory"):
        read_vocabulary(str(tmp_path))


def test_a_vocabulary_of_names_has_their_order_and_no_flags():
    vocabulary = Vocabulary.of(["b", "a"])
    assert (vocabulary.names, vocabulary.seen, len(vocabulary)) == (("b", "a"), None, 2)


def test_a_vocabulary_survives_json():
    vocabulary = Vocabulary(classes=(SOFA, CAT, DOG))
    assert Vocabulary.model_validate_json(vocabulary.model_dump_json()) == vocabulary
