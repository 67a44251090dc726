"""The vocabulary linter: planted conflicts are found, by hand-made vectors and by a real CLIP."""

import numpy as np
import pytest

from pipeline.models.clip import Clip, ClipSource, template_vectors
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.prompts import load_prompts
from pipeline.vocabulary_lint import lint_vocabulary
from schemas.vocabulary import Vocabulary, VocabularyClass, read_vocabulary

THINGS = ("cat", "dog", "bus", "cup", "pen", "axe", "owl")


def apart(count, dims=16, seed=0):
    """Return unit vectors (2, K, D) in two templates, none near another."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(2, count, dims))
    return (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)


def moved(vector, by, seed=1):
    """Return a unit vector at about the distance `by` (1 - cosine)."""
    side = np.random.default_rng(seed).normal(size=vector.shape)
    side -= (side @ vector) * vector
    moved = vector + np.sqrt(2 * by) * side / np.linalg.norm(side)
    return moved / np.linalg.norm(moved)


def found(vocabulary, vectors):
    return [(one.kind, one.names) for one in lint_vocabulary(vocabulary, vectors)]


def test_a_vocabulary_of_distant_names_with_stuff_has_no_findings():
    names = Vocabulary.of([*THINGS, "sky"])
    assert found(names, apart(8)) == []


def test_names_that_are_one_but_for_form_are_duplicates():
    names = Vocabulary(
        classes=(
            VocabularyClass(name="traffic light", synonyms=("signal",)),
            *(VocabularyClass(name=name) for name in ("The Traffic-Lights", "glass", "glasses")),
            VocabularyClass(name="buoy", synonyms=("signals",)),
            VocabularyClass(name="sky"),
        )
    )
    assert found(names, apart(6)) == [
        ("duplicate", ("traffic light", "The Traffic-Lights")),
        ("duplicate", ("glass", "glasses")),
        ("duplicate", ("traffic light", "buoy")),
    ]


def test_a_name_inside_another_is_its_hypernym():
    names = Vocabulary.of(
        ["table", "dining table", "table cloth", "wall", "wall-brick", "tables x"]
    )
    findings = lint_vocabulary(names, apart(6))
    assert [(one.kind, one.names) for one in findings] == [
        ("hypernym", ("table", "dining table")),
        ("hypernym", ("wall", "wall-brick")),
    ]
    assert "'other table'" in findings[0].suggestion


def test_near_names_stand_out_from_the_vocabularys_own_distances():
    vectors = apart(8)
    for template in vectors:
        template[1] = moved(template[0], 0.05)
    names = Vocabulary.of([*THINGS, "sky"])
    assert found(names, vectors) == [("near-synonym", ("cat", "dog"))]
    # All names as near as that: it is how this CLIP sees the world.
    crowd = np.stack(
        [[moved(template[0], 0.05, seed) for seed in range(8)] for template in vectors]
    )
    assert found(names, crowd.astype(np.float32)) == []


def test_names_that_any_template_separates_are_separable():
    vectors = apart(8)
    vectors[0, 1] = vectors[0, 0]
    names = Vocabulary.of([*THINGS, "sky"])
    assert "inseparable" not in {kind for kind, _ in found(names, vectors)}
    vectors[1, 1] = vectors[1, 0]
    assert found(names, vectors) == [("inseparable", ("cat", "dog"))]
    assert found(Vocabulary.of(["cat", "sky"]), vectors[:, :2]) == [("inseparable", ("cat", "sky"))]


def test_things_without_anything_around_them_are_missing_stuff():
    assert found(Vocabulary.of(THINGS), apart(7)) == [("no-stuff", ())]
    assert found(Vocabulary.of(["cat"]), apart(1)) == [("no-stuff", ())]
    assert found(Vocabulary.of(["cat", "brick walls"]), apart(2)) == []
    assert found(Vocabulary.of(["cat", "tree frog"]), apart(2)) == [("no-stuff", ())]


def test_vectors_must_be_those_of_the_vocabulary():
    with pytest.raises(ValueError, match="3 vectors for 7 names"):
        lint_vocabulary(Vocabulary.of(THINGS), apart(3))


@pytest.mark.parametrize("prompts", ["single", "vild"])
def test_planted_conflicts_are_found_with_a_real_clip(prompts):
    clip = Clip.load(ClipSource.of("embedded", None))
    clean = read_vocabulary(EMBEDDED_VOCABULARY)
    templates = load_prompts(prompts)
    assert lint_vocabulary(clean, template_vectors(clip, clean, templates)) == []
    planted = Vocabulary.of([*clean.names, "RED circles", "star of a blue", "circle"])
    kinds = {
        (one.kind, one.names)
        for one in lint_vocabulary(planted, template_vectors(clip, planted, templates))
    }
    assert ("duplicate", ("red circle", "RED circles")) in kinds
    assert ("hypernym", ("circle", "red circle")) in kinds
    # Words in another order are nearly the same to this CLIP.
    assert ("blue star", "star of a blue") in {
        names for kind, names in kinds if kind in ("inseparable", "near-synonym")
    }
