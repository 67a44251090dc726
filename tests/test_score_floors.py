"""Floors that promise a precision: the promise is kept, and not by promising nothing."""

import numpy as np
import pytest

from pipeline.evaluation.score_floors import (
    Checked,
    OnePerImage,
    Promise,
    find_floor,
    find_floors,
)

RESAMPLES = 200
EACH = Promise(0.9, 0.95, for_all=False)


def world(rng, size, steep):
    """Scores and whether segments are right: the higher the score, the likelier."""
    scores = rng.beta(4, 2, size)
    return scores, rng.random(size) < scores**steep


def kept_precision(scores, correct, floor):
    return correct[scores >= floor].mean()


@pytest.mark.parametrize(
    "steep, checked, least_promised",
    [(0.15, 80, 0.2), (0.15, 300, 0.5), (0.5, 80, 0.0), (0.5, 300, 0.1)],
)
def test_the_promise_holds_in_at_least_95_percent_of_resamples(steep, checked, least_promised):
    rng = np.random.default_rng(0)
    scores, correct = world(rng, 20_000, steep)
    broken = promised = 0
    for _ in range(RESAMPLES):
        sample = rng.choice(len(scores), checked, replace=False)
        floor = find_floor(scores, scores[sample], correct[sample], EACH).score
        promised += floor is not None
        broken += floor is not None and kept_precision(scores, correct, floor) < EACH.precision
    assert broken <= 0.05 * RESAMPLES
    assert promised >= least_promised * RESAMPLES


def test_a_floor_without_regard_to_chance_would_break_the_promise():
    rng = np.random.default_rng(1)
    scores, correct = world(rng, 20_000, 0.5)
    broken = 0
    for _ in range(RESAMPLES):
        sample = rng.choice(len(scores), 80, replace=False)
        order = sample[np.argsort(-scores[sample])]
        observed = correct[order].cumsum() / np.arange(1, 81)
        good = np.flatnonzero(observed >= EACH.precision)
        floor = scores[order[good[-1]]] if len(good) else 2.0
        broken += floor <= 1 and kept_precision(scores, correct, floor) < EACH.precision
    assert broken > 0.1 * RESAMPLES


def many_classes(rng, images, classes, checked):
    """Images that hold some of the classes, and err in all of them together or in none."""
    quality = rng.beta(6, 1, images)
    has = rng.random((images, classes)) < np.linspace(0.9, 0.05, classes)
    scores = np.clip(quality[:, None] + rng.normal(0, 0.15, has.shape), 0, 1)
    correct = rng.random(has.shape) < quality[:, None] ** 0.3
    population = {k: scores[has[:, k], k] for k in range(classes)}
    right = {k: correct[has[:, k], k] for k in range(classes)}

    def draw():
        drawn = rng.choice(images, checked, replace=False)
        return {
            k: Checked(which, scores[which, k], correct[which, k])
            for k in range(classes)
            if len(which := drawn[has[drawn, k]])
        }

    return population, right, draw


def test_a_promise_for_all_classes_at_once_holds_for_all_at_once():
    rng = np.random.default_rng(2)
    population, right, draw = many_classes(rng, 6_000, 12, 400)
    promise = Promise(0.9, 0.95, for_all=True)
    broken = alone = pooled = 0
    for _ in range(RESAMPLES):
        found = find_floors(draw(), population, promise)
        kept = [
            (right[k][population[k] >= floor.score], floor)
            for k, floor in found.items()
            if floor.score is not None
        ]
        own = [flags.mean() for flags, floor in kept if floor.basis == "own"]
        rest = [flags for flags, floor in kept if floor.basis == "pooled"]
        alone, pooled = alone + bool(own), pooled + bool(rest)
        precisions = own + ([np.concatenate(rest).mean()] if rest else [])
        broken += any(precision < promise.precision for precision in precisions)
    assert broken <= 0.05 * RESAMPLES
    assert alone > 0.9 * RESAMPLES and pooled > 0.05 * RESAMPLES


def test_too_few_checks_promise_nothing_and_say_how_many_it_takes():
    scores = np.linspace(0.5, 1, 28)
    floor = find_floor(scores, scores, np.ones(28, bool), EACH)
    assert floor.score is None and "28 segments were checked, 29" in floor.reason
    assert EACH.least_checked(1) == 29 and 0.9**29 <= 0.05 < 0.9**28
    one_more = find_floor(scores, np.append(scores, 0.9), np.ones(29, bool), EACH)
    assert one_more.score == 0.5 and one_more.kept_share == 1


def test_a_class_that_is_always_wrong_gets_no_floor():
    scores = np.linspace(0, 1, 200)
    floor = find_floor(scores, scores, np.zeros(200, bool), EACH)
    assert floor.score is None and floor.lower_bound == 0 and "0 of the" in floor.reason


def test_promising_for_all_asks_for_more():
    assert Promise(0.9, 0.95, for_all=True).least_checked(10) > EACH.least_checked(10) == 29


def test_the_lower_bound_is_that_of_clopper_and_pearson():
    scores = np.ones(100)
    floor = find_floor(scores, scores, np.arange(100) < 97, EACH)
    assert (floor.kept, floor.correct, floor.score) == (100, 97, 1.0)
    assert floor.lower_bound == pytest.approx(0.9242, abs=5e-4)  # table of exact one-sided bounds


def test_the_test_passes_from_the_least_number_of_correct_ones_that_is_rare_enough():
    # At a precision of 0.9 that many or more of 100 are right by a chance of 0.058, and of 0.024.
    scores = np.ones(100)
    assert find_floor(scores, scores, np.arange(100) < 95, EACH).score is None
    assert find_floor(scores, scores, np.arange(100) < 96, EACH).score == 1.0


def test_the_rare_classes_together_are_one_more_group():
    promise = Promise(0.9, 0.95, for_all=True)
    scores, correct = np.ones(100), np.arange(100) < 97
    checked = {
        0: Checked(np.arange(100), scores, correct),
        1: Checked(np.arange(5), np.ones(5), np.ones(5, bool)),
    }
    found = find_floors(checked, {0: scores, 1: np.ones(5)}, promise)
    alone = find_floor(scores, scores, correct, promise, groups=2)
    assert found[0] == alone and found[0].basis == "own"
    assert alone.lower_bound < find_floor(scores, scores, correct, promise).lower_bound - 0.005
    only = find_floors({0: checked[0]}, {0: scores}, promise)  # and where none is rare, it is not
    assert only[0] == find_floor(scores, scores, correct, promise)


def test_every_segment_is_tested_as_often_as_any_other():
    images = np.repeat([0, 1], [10, 1])
    drawn = np.stack([OnePerImage(images, seed)(np.ones(11, bool)) for seed in range(2000)])
    assert drawn.mean(axis=0) == pytest.approx(0.1, abs=0.03)
    assert drawn[:, :10].sum(axis=1).max() == 1


def test_rare_classes_are_tested_together_on_one_segment_an_image():
    images = np.arange(40)
    rare = {k: Checked(images, np.full(40, 0.8), np.ones(40, bool)) for k in (1, 2)}
    population = {k: np.full(40, 0.8) for k in (1, 2, 3)}
    found = find_floors(rare, population, EACH)
    assert {floor.basis for floor in found.values()} == {"pooled"} and set(found) == {1, 2, 3}
    assert {floor.checked for floor in found.values()} == {40}
    assert {floor.score for floor in found.values()} == {0.8}


def test_segments_of_busy_images_weigh_as_much_as_others_in_the_test_of_rare_classes():
    """Every third image holds ten rare segments of lower precision, the others one that is right:
    of all segments fewer than nine in ten are right, yet of one drawn from every image more.
    """
    rng = np.random.default_rng(0)
    images, classes = 6_000, 60
    sizes = np.where(rng.random(images) < 0.3, 10, 1)
    image_N = np.repeat(np.arange(images), sizes)
    class_N = np.concatenate([rng.choice(classes, size, replace=False) for size in sizes])
    correct_N = rng.random(len(image_N)) < np.where(sizes[image_N] > 1, 0.85, 1.0)
    score_N = rng.random(len(image_N))
    population = {k: score_N[class_N == k] for k in range(classes)}
    broken = 0
    for seed in range(RESAMPLES):
        is_drawn = np.zeros(images, bool)
        is_drawn[rng.choice(images, 300, replace=False)] = True
        checked = {
            k: Checked(image_N[chosen], score_N[chosen], correct_N[chosen])
            for k in range(classes)
            if (chosen := (class_N == k) & is_drawn[image_N]).any()
        }
        floors = find_floors(checked, population, EACH, seed)
        assert {floor.basis for floor in floors.values()} == {"pooled"}
        floor = floors[0].score
        broken += floor is not None and kept_precision(score_N, correct_N, floor) < EACH.precision
    assert broken <= 0.05 * RESAMPLES
