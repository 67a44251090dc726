"""Outlines within a tolerance, by hand; on two photographs, people against people."""

import numpy as np
import pytest

from pipeline.evaluation.outlines import OutlineCounts, outline
from pipeline.evaluation.truth_segments import read_segments
from tests.helpers import draw, draw_classes

SIZE = (300, 400)  # the diagonal is 500: the tolerance is 3.75 pixels


def column(*positions):
    found = np.zeros(SIZE, dtype=bool)
    found[:, list(positions)] = True
    return found


def test_an_outline_is_where_the_right_or_lower_neighbour_differs():
    ids = draw_classes("1122", "1122", "1333")
    np.testing.assert_array_equal(outline(ids), draw(".#..", ".###", "#..."))
    assert not outline(np.zeros((3, 4), dtype=int)).any()


def test_nobody_knows_the_outline_of_ignored_pixels():
    ids = draw_classes("1122", "1122", "1333")
    known = draw("####", "####", "#...")
    np.testing.assert_array_equal(outline(ids, known), draw(".#..", ".#..", "...."))


@pytest.mark.parametrize("shift, hits", [(0, 300), (3, 300), (4, 0)])
def test_pixels_within_the_tolerance_are_matched(shift, hits):
    counts = OutlineCounts.of([column(100 + shift)], [column(100)])
    assert (counts.predicted[0], counts.predicted_hits[0]) == (300, hits)
    assert (counts.truth[0], counts.truth_hits[0]) == (300, hits)


def test_precision_and_recall_differ():
    counts = OutlineCounts.of([column(100, 200, 300)], [column(100), column(102, 250)])
    # Near the first person's line and the second's: one of three; two of the three true lines.
    assert (counts.precision()[0], counts.recall()[0]) == (1 / 3, 2 / 3)
    assert counts.f_measure()[0] == pytest.approx(2 * (1 / 3) * (2 / 3))


def test_outlines_of_one_image_are_counted_apart():
    twice = column(100, 200)
    counts = OutlineCounts.of([column(100), twice, twice], [column(100)])
    assert counts.precision().tolist() == [1, 0.5, 0.5]
    assert counts.recall().tolist() == [1, 1, 1]
    assert counts.truth.tolist() == [300, 300, 300]


def test_without_an_outline_there_is_no_precision():
    nothing = np.zeros(SIZE, dtype=bool)
    empty = OutlineCounts.of([nothing], [column(100)])
    assert np.isnan(empty.precision()[0]) and empty.recall()[0] == 0
    assert np.isnan(empty.f_measure()[0])
    missed = OutlineCounts.of([column(100)], [nothing])
    assert missed.precision()[0] == 0 and np.isnan(missed.recall()[0])
    apart = OutlineCounts.of([column(100)], [column(200)])
    assert apart.f_measure()[0] == 0


def test_parts_merged_are_the_whole():
    parts = [
        OutlineCounts.of([column(100, 200)], [column(100)]),
        OutlineCounts.of([column(10)], [column(10, 50, 90)]),
    ]
    whole = sum(parts, start=OutlineCounts.zero())
    assert (whole.precision()[0], whole.recall()[0]) == (2 / 3, 2 / 4)


@pytest.mark.shared
@pytest.mark.parametrize("name, size", [("101085", (481, 321)), ("103070", (321, 481))])
def test_people_find_each_others_outlines_on_bsds(shared, name, size):
    path = shared / "bsds500" / "groundTruth" / "val" / f"{name}.mat"
    people = [outline(ids) for ids in read_segments(path, "bsds", size, 255).maps]
    alone = OutlineCounts.of([people[0]], [people[0]])
    assert (alone.precision()[0], alone.recall()[0]) == (1, 1)
    others = OutlineCounts.of([people[0]], people[1:])
    assert others.precision()[0] > 0.7
    # A picture drawn upside down shows how much is chance.
    chance = OutlineCounts.of([people[0][::-1]], people[1:])
    assert chance.f_measure()[0] < others.f_measure()[0] - 0.2
