"""The page of an evaluation: names stay text, nothing comes from elsewhere, figures are drawn."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from jobs.evaluate import evaluate
from pipeline.evaluation.heat_map import MAX_CLASSES, largest_mistakes, make_heat_map
from pipeline.metrics import Confusion
from schemas.evaluate_config import EvaluateConfig
from schemas.vocabulary import Vocabulary
from tests.helpers import draw_classes
from tests.test_report import Page, labelled_row, write_dataset

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}&amp;", "‮abc")
PREDICTED = draw_classes("0011", "0022", "001.", "3311")
TRUTH = draw_classes("0011", "0011", "0011", "3322")


@pytest.fixture
def written(tmp_path):
    """Write the page of one image in hostile classes; return it as read."""

    def write(names=HOSTILE, seen=(True, False, False, True)):
        vocabulary = Vocabulary.model_validate(
            {"classes": [{"name": n, "seen": s} for n, s in zip(names, seen, strict=True)]}
        )
        rows = [labelled_row(tmp_path / "photos" / "one.png", names, PREDICTED)]
        labels = write_dataset(tmp_path / "labels", [rows], vocabulary)
        (tmp_path / "truth").mkdir()
        Image.fromarray(TRUTH.astype(np.uint8)).save(tmp_path / "truth" / "one.png")
        page = tmp_path / "page.html"
        result = evaluate(
            EvaluateConfig(
                dataset=labels,
                truth=str(tmp_path / "truth"),
                page=page,
                output=tmp_path / "result.json",
            )
        )
        return Page(page), result

    return write


def test_names_stay_text(written, tmp_path):
    page, _ = written()
    for name in HOSTILE:
        assert name in page.text
    assert not page.all("img")
    assert "onerror" not in {key for _, attributes in page.elements for key in attributes}
    assert len(page.all("script")) == 1
    assert page.open == []
    names = [row["name"] for row in json.loads((tmp_path / "result.json").read_text())["classes"]]
    assert names == list(HOSTILE)


def test_the_page_runs_one_script_and_loads_nothing(written):
    page, _ = written()
    (policy,) = [one["content"] for one in page.all("meta") if "content" in one and
                 "default-src" in one["content"]]  # fmt: skip
    script = re.search(r"<script>(.*?)</script>\s*</body>", page.source, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    loads = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in {"src", "href", "srcset", "xlink:href"} and not value.startswith("data:")
    ]
    assert loads == []
    assert not re.search(r"@import|url\(", page.source)


def test_figures_are_on_the_page(written):
    page, result = written()
    for value in (result.headline.hiou, result.pixel_accuracy, result.headline.boundary_miou):
        assert f"{value:.1%}" in page.text
    # Bin 15 holds every labelled pixel: the one bar of the reliability diagram.
    (bar,) = page.all("rect", **{"class": "standing"})
    accuracy = 11 / 15
    assert float(bar["height"]) == pytest.approx(240 * accuracy, abs=0.1)
    assert "score 0.75: 73.3% correct, 100.0% of labelled pixels" in page.text


def test_the_matrix_has_rows_of_true_and_columns_of_predicted_classes(written):
    page, _ = written(names=("sky", "cat", "tree", "sofa"))
    hits, misses = (page.all("rect", **{"class": kind}) for kind in ("hit", "miss"))
    assert len(hits) == 3  # of tree nothing was found
    assert "cat labelled tree: 33.3% (2 px)" in page.text
    assert "cat labelled no label: 16.7% (1 px)" in page.text
    assert "tree labelled cat: 100.0% (2 px)" in page.text
    assert len(misses) == 3
    (ground,) = page.all("rect", **{"class": "ground"})
    side = float(hits[0]["width"])
    place = {
        (round((float(m["x"]) - float(ground["x"])) / side),
         round((float(m["y"]) - float(ground["y"])) / side))
        for m in misses
    }  # fmt: skip
    assert place == {(2, 1), (4, 1), (1, 2)}


def test_the_largest_mistakes_are_listed_first():
    found = largest_mistakes(Confusion.of(PREDICTED, TRUTH, 4), Vocabulary.of("abcd"))
    listed = [(one.truth, one.predicted, one.share, one.share_of_errors) for one in found]
    assert listed == [
        ("c", "b", 1, 2 / 5),
        ("b", "c", 2 / 6, 2 / 5),
        ("b", "no label", 1 / 6, 1 / 5),
    ]


def test_of_many_classes_the_frequent_ones_are_drawn():
    vocabulary = Vocabulary.of(f"class {index}" for index in range(300))
    counts = np.zeros((301, 300), dtype=np.int64)
    counts[np.arange(300), np.arange(300)] = np.arange(300)
    counts[300, 299] = 299
    found = make_heat_map(Confusion(counts), vocabulary)
    assert found.names == tuple(f"class {index}" for index in range(100, 300))
    assert len(found.names) == MAX_CLASSES and found.num_left_out == 99
    assert not found.has_names
    last = [cell for cell in found.cells if cell.row == 199]
    assert [(cell.column, cell.share) for cell in last] == [(199, 0.5), (200, 0.5)]


def test_a_perfect_result_has_no_mistake():
    assert not largest_mistakes(Confusion.of(TRUTH, TRUTH, 4), Vocabulary.of("abcd"))
