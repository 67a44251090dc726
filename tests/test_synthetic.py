"""The synthetic world and its captions."""

import numpy as np
import pytest

from pipeline.synthetic import (
    NUM_THINGS,
    TEST_SEED,
    TRAIN_SEEDS,
    UNSEEN,
    VALIDATION_SEED,
    VOCABULARY,
    class_names,
    make_scene,
    seen_flags,
)
from pipeline.training.captions import OPEN, TEMPLATES, is_true_of, make_caption, meaning


def test_every_part_of_an_unseen_name_is_seen_in_other_names():
    assert len(UNSEEN) == 15
    assert set(UNSEEN) <= set(class_names())
    seen_names = [name for name, seen in zip(class_names(), seen_flags(), strict=True) if seen]
    assert len(seen_names) == len(set(VOCABULARY)) - 15 >= 45
    for name in UNSEEN:
        for word in name.split():
            assert sum(word in other.split() for other in seen_names) >= 3, (name, word)


def test_a_scene_follows_from_seed_and_index_alone():
    first, again, other = make_scene(7, 3), make_scene(7, 3), make_scene(7, 4)
    np.testing.assert_array_equal(first.image_HW3, again.image_HW3)
    np.testing.assert_array_equal(first.label_map_HW, again.label_map_HW)
    assert (
        first.image_HW3.shape != other.image_HW3.shape or (first.image_HW3 != other.image_HW3).any()
    )


@pytest.mark.parametrize("index", range(6))
def test_the_label_map_covers_every_pixel_with_one_ground_and_some_things(index):
    scene = make_scene(TRAIN_SEEDS[0], index)
    assert scene.image_HW3.dtype == scene.label_map_HW.dtype == np.uint8
    assert scene.image_HW3.shape == (*scene.label_map_HW.shape, 3)
    present = np.unique(scene.label_map_HW)
    assert present.max() < len(VOCABULARY)
    assert (present >= NUM_THINGS).sum() == 1
    assert 1 <= (present < NUM_THINGS).sum() <= 6


def test_seen_scenes_show_no_unseen_class():
    unseen = [index for index, seen in enumerate(seen_flags()) if not seen]
    label_maps = [make_scene(0, index, classes="seen").label_map_HW for index in range(30)]
    assert not any(np.isin(label_map, unseen).any() for label_map in label_maps)
    # The check can fail: over as many scenes of all classes, some are shown.
    label_maps = [make_scene(0, index).label_map_HW for index in range(30)]
    assert any(np.isin(label_map, unseen).any() for label_map in label_maps)


def test_seeds_of_training_validation_and_test_are_apart():
    assert VALIDATION_SEED not in TRAIN_SEEDS
    assert TEST_SEED not in TRAIN_SEEDS
    assert VALIDATION_SEED != TEST_SEED


def test_captions_of_seen_classes_never_name_an_unseen_one():
    rng = np.random.default_rng(0)
    seen = [index for index, flag in enumerate(seen_flags()) if flag]
    captions = [make_caption(rng, index)[0] for index in seen for _ in range(60)]
    assert not any(name in caption for caption in captions for name in UNSEEN)
    assert any("red circle" in caption for caption in captions)
    assert {"a photo of a {}.", "a sculpture of a {}."} <= set(TEMPLATES)


def test_a_partial_caption_is_true_of_every_picture_that_agrees():
    red_circle, red_ring = (VOCABULARY.index(name) for name in ("red circle", "red ring"))
    striped_red = VOCABULARY.index("striped red ground")
    pictures = np.array([meaning(index) for index in (red_circle, red_ring, striped_red)])
    kind, colour, form = meaning(red_circle)
    captions = np.array([(kind, colour, form), (kind, colour, OPEN), (kind, OPEN, form)])
    expected = [[True, False, False], [True, True, False], [True, False, False]]
    np.testing.assert_array_equal(is_true_of(captions, pictures), expected)
