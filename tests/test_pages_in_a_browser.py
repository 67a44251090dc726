"""The report in a real Chromium: filters, keys, a phone, hostile names, nothing from elsewhere."""

import numpy as np
import pytest
from PIL import Image

from jobs.report import report
from schemas.report_config import ReportConfig
from schemas.vocabulary import Vocabulary
from tests.helpers import draw_classes
from tests.test_report import HOSTILE, labelled_row, quarantined_row, write_dataset

PICTURES = (("0011", "0011"), ("00..", "00.."), ("2222", "2233"), ("1111", "1133"))
SCORES = (0.9, 0.4, 0.6, 0.8)
LONG = "x" * 150  # a name without a place to break


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report on four images with hostile names in hostile classes, and two quarantined ones."""
    folder = tmp_path_factory.mktemp("pages")
    rows = [
        labelled_row(
            folder / "photos" / f"{number}{name.replace('/', '')}.png",
            HOSTILE,
            np.kron(draw_classes(*picture), np.ones((30, 30), int)),
            score,
        )
        for number, (name, picture, score) in enumerate(zip(HOSTILE, PICTURES, SCORES, strict=True))
    ]
    rows += [
        quarantined_row(f"s3://bucket/{LONG}", stage=HOSTILE[0], code=HOSTILE[1], message=LONG),
        quarantined_row("s3://bucket/plain.jpg"),
    ]
    (folder / "truth").mkdir()
    Image.fromarray(np.zeros((60, 120), np.uint8)).save(
        folder / "truth" / f"{rows[0]['uri'].rpartition('/')[2]}"
    )
    dataset = write_dataset(folder / "labels", [rows], Vocabulary.of(HOSTILE))
    settings = {"dataset": dataset, "output": folder / "page.html", "truth": str(folder / "truth")}
    return report(ReportConfig(**settings)).output


@pytest.fixture
def shown(browser, page):
    browser.open(page)
    return browser


def visible(browser, what="article"):
    """The numbers with which the names of the visible cards begin, in order."""
    return browser.run(
        f"[...document.querySelectorAll('{what}')].filter(e => e.offsetParent !== null)"
        ".map(e => e.textContent.trim()[0]).join('')"
    )


def test_names_stay_text_and_nothing_comes_from_elsewhere(shown):
    assert shown.complaints == []
    assert [url for url in shown.requests if not url.startswith(("file:", "data:"))] == []
    assert shown.run("document.scripts.length") == 1
    assert shown.run("document.querySelectorAll('[onerror], [onmouseover]').length") == 0
    names = shown.run("[...document.querySelectorAll('.class-table bdi')].map(e => e.textContent)")
    assert sorted(names) == sorted(HOSTILE)
    options = shown.run("[...document.querySelectorAll('#class option')].map(e => e.textContent)")
    assert sorted(options) == sorted(["any", *HOSTILE])
    assert shown.run("[...document.images].every(e => e.complete && e.naturalWidth > 0)")


def test_a_script_that_got_into_the_page_would_not_run(browser, page, tmp_path):
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("</h1>") == 1
    broken.write_text(text.replace("</h1>", "</h1><script>document.title = 'run'</script>"))
    browser.open(broken)
    assert browser.run("document.title").endswith("Segmill report")
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)


@pytest.mark.parametrize(
    "control, value, cards, refused",
    [
        ("class", "0", "01", 0),
        ("class", "3", "23", 0),
        ("status", "quarantined", "", 2),
        ("status", "labelled", "0123", 0),
        ("picked", "worst", "1", 0),
        ("picked", "uncertain", "1", 0),
        ("least", "0.7", "03", 2),
        ("most", "0.7", "12", 2),
        ("search", "2{{", "2", 0),
        ("search", "PLAIN", "", 1),
    ],
)
def test_filters(shown, control, value, cards, refused):
    shown.run("document.getElementById('filters').open = true")
    shown.choose("order", "name")
    assert visible(shown) == "0123"
    shown.choose(control, value)
    assert visible(shown) == cards
    rows = shown.run(
        "[...document.querySelectorAll('[data-refusal]')].filter(e => !e.hidden).length"
    )
    assert rows == refused
    found = shown.run("document.getElementById('found').value")
    assert found == f"{len(cards)} of 4 images, {refused} of 2 quarantined"


@pytest.mark.parametrize(
    "order, cards",
    [("worst", "1230"), ("uncertain", "1230"), ("name", "0123"), ("accuracy", "0")],
)
def test_order(shown, order, cards):
    shown.choose("order", order)
    assert visible(shown).startswith(cards)


def test_labels_fade_and_go(shown):
    fade = "getComputedStyle(document.querySelector('.overlay')).opacity"
    assert shown.run(fade) == "0.6"
    shown.choose("opacity", "25")
    assert shown.run(fade) == "0.25"
    shown.press("]")
    assert shown.run(fade) == "0.35"
    shown.press("l")
    assert shown.run(fade) == "0"
    shown.press("l")
    shown.run("document.querySelector('.pane').click()")
    assert shown.run("getComputedStyle(document.querySelector('.pane .overlay')).opacity") == "0"
    assert shown.run("document.querySelector('.pane').getAttribute('aria-pressed')") == "false"


def test_keys_go_from_card_to_card(shown):
    shown.choose("order", "name")
    at = "(document.activeElement.closest('article') || {textContent: '-'}).textContent.trim()[0]"
    seen = []
    for key in ("j", "j", "ArrowRight", "k", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        shown.press(key)
        seen.append(shown.run(at))
    assert "".join(seen) == "0121000"
    shown.press(" ")
    assert shown.run("document.activeElement.querySelector('.pane').ariaPressed") == "false"
    shown.press("/")
    assert shown.run("document.activeElement.id") == "search"
    shown.press("j")  # now a letter, not a command
    assert shown.run("document.getElementById('search').value") == "j"
    shown.press("Escape")
    assert shown.run("document.activeElement.tagName") == "BODY"


def test_everything_can_be_reached_by_tab(shown):
    shown.run("document.getElementById('filters').open = true")
    reached = set()
    for _ in range(60):
        shown.press("Tab")
        reached.add(shown.run("document.activeElement.id || document.activeElement.className"))
    wanted = {"skip", "labels", "opacity", "search", "class", "status", "picked", "least", "most"}
    assert wanted | {"order", "card", "pane", "scroll"} <= reached


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser, page):
    browser.open(page, 390, 844, phone=True)
    browser.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") == 390
    cut = browser.run(
        "[...document.querySelectorAll('article, label, summary, .tile, td')]"
        ".filter(e => e.offsetParent !== null && !e.closest('.scroll'))"
        ".filter(e => e.getBoundingClientRect().right > 390.5).map(e => e.className + e.tagName)"
    )
    assert cut == []
    small = browser.run(
        "[...document.querySelectorAll('summary, .filters select, .filters input, .pane')]"
        ".filter(e => e.offsetParent !== null && !e.closest('.card details'))"
        ".filter(e => e.getBoundingClientRect().height < 40).length"
    )
    assert small == 0
    assert browser.run("document.querySelector('.toolbar').getBoundingClientRect().height") < 70


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(browser, page, scheme):
    browser.call(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    browser.open(page)
    contrast = browser.run(
        """(() => {
          const light = (text) => {
            const parts = text.match(/[\\d.]+/g).slice(0, 3).map((value) => {
              const share = value / 255;
              return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
          };
          const ground = (element) => {
            for (let at = element; at; at = at.parentElement) {
              const colour = getComputedStyle(at).backgroundColor;
              if (!colour.endsWith(", 0)")) return colour;
            }
            return "rgb(255, 255, 255)";
          };
          const words = "p, td, th, dt, dd, label, h1, h2, h3, a, .tag";
          return Math.min(...[...document.querySelectorAll(words)]
            .filter((element) => element.offsetParent !== null && element.textContent.trim())
            .map((element) => {
              const pair = [getComputedStyle(element).color, ground(element)].map(light);
              return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
            }));
        })()"""
    )
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert contrast >= 4.5  # WCAG 2.2, level AA
