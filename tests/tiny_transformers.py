"""What the tests of proposers by networks share: two photos, a whole annotation of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models import find_proposer
from pipeline.models.clip import Clip, ClipSource
from pipeline.prompts import text_classifier
from pipeline.stages.fetch import FetchDecode
from pipeline.stages.propose import Propose
from schemas.annotate_config import SourceSettings
from schemas.annotation import ANNOTATED, INVENTORY, LABELLED, conform, image_id, table_from_rows
from schemas.vocabulary import Vocabulary
from tests.classify import make_classify
from tests.dataset_checks import check_rows
from tests.helpers import save_tiny_clip

NAMES = ("sky", "cat", "tree")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Run tiny models on one thread: more gain nothing, and wait for each other on a busy CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photo(height, width, seed=0):
    """Return random colours in blocks of eight pixels, as uint8 (height, width, 3)."""
    blocks = (-(-height // 8), -(-width // 8), 3)
    image = np.random.default_rng(seed).integers(0, 256, blocks, dtype=np.uint8)
    return image.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def annotate_two_photos(proposer, weights, folder, edges=None, modules=()):
    """Run fetch, propose and classify on two photos of different sizes; return how many proposals.

    `edges` replaces the card's short and long edge; `modules` are those to import first.
    """
    card = find_proposer(proposer, modules).describe(weights)
    rows = []
    for index, (height, width) in enumerate([(50, 90), (70, 40)]):
        path = folder / f"{index}.png"
        Image.fromarray(photo(height, width, index)).save(path)
        rows.append({"image_id": image_id(str(path)), "uri": str(path), "size_bytes": None})
    short_edge, long_edge = edges or (card.short_edge, card.long_edge)
    fetch = FetchDecode(short_edge, long_edge, SourceSettings())
    propose = Propose(proposer, weights, card.divisor, "uint8", modules)
    proposed = propose(fetch(table_from_rows(rows, INVENTORY)))
    annotated = conform(_classify(folder / "clip", card.divisor)(proposed), ANNOTATED).to_pylist()
    assert [row["status"] for row in annotated] == [LABELLED, LABELLED], annotated
    check_rows(annotated, whole=False)
    return proposed["n_proposals"].to_pylist()


def _classify(clip_folder, divisor):
    clip = ClipSource(save_tiny_clip(clip_folder))
    templates = ("a photo of a {}.",)
    text_KD = text_classifier(Clip.load(clip).encode_text, Vocabulary.of(NAMES), templates)
    return make_classify(clip, text_KD, NAMES, divisor=divisor, precision="uint8")
