"""Names, splits and ids of the data sets, by the fingerprints and numbers of spec 5.1."""

import hashlib

import pytest

from pipeline.datasets import ade20k, cityscapes, coco_stuff, pascal_context, voc
from pipeline.datasets.plan import flagged


def fingerprint(names):
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def seen_of(names, unseen):
    return [name for name in names if name not in unseen]


@pytest.mark.parametrize(
    ("names", "number", "expected"),
    [
        (coco_stuff.NAMES, 171, "8ea44449837dceb3"),
        (seen_of(coco_stuff.NAMES, coco_stuff.UNSEEN), 156, "e3ea3e091a14ed76"),
        (coco_stuff.UNSEEN, 15, "533ffb0b4f97cc16"),
        (voc.NAMES, 20, "7d877f185c807bc5"),
        (pascal_context.NAMES_59, 59, "1c0546d54360b603"),
        (ade20k.NAMES, 150, "aaab84ac88c425d4"),
    ],
    ids=["COCO-Stuff", "its seen", "its unseen", "VOC", "Context 59", "ADE20K 150"],
)
def test_names_have_the_fingerprint_of_the_specification(names, number, expected):
    assert (len(names), fingerprint(names)) == (number, expected)


def test_unseen_classes_of_coco_are_where_the_specification_has_them():
    at = [coco_stuff.NAMES.index(name) for name in coco_stuff.UNSEEN]
    assert at == [19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160]
    values = [value for value, index in coco_stuff.INDEX_OF.items() if index in at]
    assert values == [20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171]


def test_ids_of_coco_leave_the_eleven_unused_ones_out():
    assert len(coco_stuff.INDEX_OF) == 171
    assert sorted(coco_stuff.INDEX_OF.values()) == list(range(171))
    unused = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]
    assert not coco_stuff.INDEX_OF.keys() & {id_ - 1 for id_ in unused}
    assert coco_stuff.INDEX_OF[91] == 80  # the first stuff, id 92


def test_unseen_classes_of_voc_are_the_last_five():
    assert voc.NAMES[15:] == voc.UNSEEN
    assert flagged(voc.NAMES, voc.UNSEEN).seen == (True,) * 15 + (False,) * 5


def test_context_59_is_in_order_of_ids_with_a_name_for_each():
    assert len(pascal_context.IDS_59) == len(set(pascal_context.IDS_59)) == 59
    assert list(pascal_context.IDS_59) == sorted(pascal_context.IDS_59)
    original = ["table" if name == "diningtable" else name for name in pascal_context.NAMES_59]
    assert original == sorted(original)


def test_cityscapes_has_19_classes_in_order_of_ids():
    assert len(cityscapes.CLASSES) == 19
    assert list(cityscapes.CLASSES) == sorted(cityscapes.CLASSES)
