"""Prompt templates, and the text vectors made from them."""

import hashlib

import numpy as np
import pytest

from pipeline.prompts import load_templates, text_classifier
from schemas.errors import ModelError, SettingsError
from schemas.vocabulary import Vocabulary, VocabularyClass


def test_the_default_is_the_one_template_of_the_paper():
    assert load_templates("single") == ("a sculpture of a {}.",)


def test_vild_has_its_fourteen_templates():
    assert set(load_templates("vild")) == {
        "a photo of a small {}.",
        "a photo of a medium {}.",
        "a photo of a large {}.",
        "This is a photo of a small {}.",
        "This is a photo of a medium {}.",
        "This is a photo of a large {}.",
        "There is a small {} in the scene.",
        "There is a medium {} in the scene.",
        "There is a large {} in the scene.",
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
    }
    assert len(load_templates("vild")) == 14


def test_imagenets_eighty_templates_have_the_fingerprint_of_the_reference():
    templates = load_templates("imagenet")
    assert len(templates) == 80
    digest = hashlib.sha256("\n".join(sorted(templates)).encode()).hexdigest()
    assert digest == "a8a4822f2921936e2ef07cf2e7a5df69be9532aab2f3f4880156bb03563e2467"


def test_a_text_with_braces_is_a_template():
    assert load_templates("one {} here") == ("one {} here",)


def test_a_file_of_templates_is_read_without_its_empty_lines(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffa {}.\r\n\r\n  é {} 猫  \n", encoding="utf-8")
    assert load_templates(str(path)) == ("a {}.", "é {} 猫")


@pytest.mark.parametrize(
    "prompts, words",
    [
        ("vlid", ["'vlid'", "single, vild, imagenet"]),
        ("", ["single, vild, imagenet"]),
        ("a {name}", ["{name}", "exactly once"]),
        ("a {} and a {}", ["exactly once"]),
        ("a {} {", ["exactly once"]),
        ("{", ["exactly once"]),
        ("x" * 5000, ["no template set"]),
    ],
    ids=["misspelt", "empty", "named", "twice", "open brace", "brace", "too long for a path"],
)
def test_prompts_that_are_nothing_are_refused(prompts, words):
    with pytest.raises(SettingsError) as caught:
        load_templates(prompts)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"a {}\n\nno place\n", ["line 3", "'no place'"]),
        (b"a {} of {}\n", ["line 1"]),
        (b"\n \n", ["holds no template"]),
        (b"", ["holds no template"]),
        (b"caf\xe9 {}\n", ["not UTF-8"]),
    ],
    ids=["no braces", "braces twice", "empty lines", "no bytes", "latin-1"],
)
def test_a_wrong_file_of_templates_is_refused_by_line(tmp_path, content, words):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_templates(str(path))
    for word in ["mine.txt", *words]:
        assert word in str(caught.value)


ANGLES = {"a cat": 0, "the cat": 90, "a tom": 60, "the tom": 30, "a dog": 180, "the dog": 200}


def encode_by_table(prompts):
    radians = np.deg2rad([ANGLES[prompt] for prompt in prompts])
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    "entry, templates, degrees",
    [
        (VocabularyClass(name="cat"), ("a {}",), 0),
        (VocabularyClass(name="cat"), ("a {}", "the {}"), 45),
        (VocabularyClass(name="cat", synonyms=("tom",)), ("a {}",), 30),
        (VocabularyClass(name="cat", synonyms=("tom",)), ("a {}", "the {}"), 45),
        (VocabularyClass(name="dog"), ("a {}", "the {}"), 190),
    ],
    ids=["one prompt", "two templates", "a synonym", "both", "another class"],
)
def test_a_class_is_the_unit_mean_over_templates_and_synonyms(entry, templates, degrees):
    vectors_KD = text_classifier(encode_by_table, Vocabulary(classes=(entry,)), templates)
    radians = np.deg2rad(degrees)
    np.testing.assert_allclose(vectors_KD, [[np.cos(radians), np.sin(radians)]], atol=1e-6)


def test_classes_keep_their_order():
    vectors_KD = text_classifier(encode_by_table, Vocabulary.of(["dog", "cat"]), ("a {}",))
    assert vectors_KD.dtype == np.float32
    np.testing.assert_allclose(vectors_KD, [[-1, 0], [1, 0]], atol=1e-6)


def test_a_class_name_is_inserted_verbatim():
    seen = []

    def encode(prompts):
        seen.extend(prompts)
        return np.ones((len(prompts), 2), dtype=np.float32)

    text_classifier(encode, Vocabulary.of(["a {} b", "{0}"]), ("x {}.",))
    assert seen == ["x a {} b.", "x {0}."]


def test_a_text_vector_that_is_not_finite_is_refused_by_its_class():
    def encode(prompts):
        return np.array([[np.nan if "cat" in prompt else 1.0, 0.0] for prompt in prompts])

    with pytest.raises(ModelError, match="text vector of 'cat' has numbers that are not finite"):
        text_classifier(encode, Vocabulary.of(["dog", "cat"]), ("a {}",))
