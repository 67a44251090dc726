"""Proposals from files: label maps and stacks of masks."""

import numpy as np
import pytest
from PIL import Image

from pipeline.masks import mask_probs
from pipeline.models.precomputed import (
    Precomputed,
    describe,
    masks_at,
    read_masks,
)
from pipeline.resize import padded_size, resize_nearest
from schemas.errors import ModelError
from tests.helpers import draw, draw_classes

LABELS = draw_classes("0017", "0077", "..77")  # 3 x 4, `.` is -1
STACK = np.stack([draw("##..", "##..", "...."), draw(".###", "....", "....")])


def save(path, array):
    """Write an array in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, masks=array)
    else:
        np.save(path, array)
    return path


@pytest.mark.parametrize(
    "name, array",
    [
        ("a.png", LABELS.clip(0).astype(np.uint8)),
        ("a.png", LABELS.clip(0).astype(np.uint16) * 300),
        ("a.npy", LABELS.astype(np.int64)),
        ("a.npz", LABELS.astype(np.int16)),
        ("a.npy", STACK),
        ("a.npz", STACK),
    ],
    ids=["png", "16-bit png", "npy labels", "npz labels", "npy stack", "npz stack"],
)
def test_what_was_written_is_read(tmp_path, name, array):
    np.testing.assert_array_equal(read_masks(save(tmp_path / name, array)), array)


@pytest.mark.parametrize(
    "array, words",
    [
        (STACK.astype(np.float32), r"is float32 of shape \(2, 3, 4\), neither integers"),
        (STACK[0], r"is bool of shape \(3, 4\), neither integers \(H, W\) nor booleans"),
        (LABELS.astype(float), "is float64"),
        (np.array([{}], dtype=object), "cannot be read: ValueError"),
    ],
    ids=["float stack", "one mask", "float labels", "pickled objects"],
)
def test_another_kind_of_array_is_refused(tmp_path, array, words):
    with pytest.raises(ValueError, match=words):
        read_masks(save(tmp_path / "a.npy", array))


def test_a_broken_file_is_refused(tmp_path):
    for name in ("a.png", "a.npy", "a.npz"):
        path = save(tmp_path / name, LABELS.clip(0).astype(np.uint8))
        path.write_bytes(path.read_bytes()[:30])
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            read_masks(path)
    colour = save(tmp_path / "a.png", np.zeros((2, 2, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="is a RGB image"):
        read_masks(colour)
    np.savez(tmp_path / "a.npz", one=LABELS, two=LABELS)
    with pytest.raises(ValueError, match="holds 2 arrays, not one"):
        read_masks(tmp_path / "a.npz")


def test_every_number_of_a_label_map_is_a_mask():
    masks_QHW = masks_at((3, 4), LABELS, (3, 4), "a.png")
    np.testing.assert_array_equal(masks_QHW, [LABELS == 0, LABELS == 1, LABELS == 7])


@pytest.mark.parametrize("masks", [LABELS, STACK], ids=["labels", "stack"])
def test_masks_of_the_original_and_of_the_resized_image_fit(masks):
    doubled = masks.repeat(2, axis=-2).repeat(3, axis=-1)
    from_original = masks_at((6, 12), masks, (3, 4), "a")
    from_resized = masks_at((6, 12), doubled, (3, 4), "a")
    assert from_original.dtype == bool
    np.testing.assert_array_equal(from_original, from_resized)


def test_masks_of_another_size_are_refused_with_both_sizes():
    words = r"masks of a.png are 3x4, the image is 4x3 and resized 8x6 \(height x width\)"
    with pytest.raises(ValueError, match=words):
        masks_at((8, 6), LABELS, (4, 3), "a.png")


def test_more_masks_than_can_be_held_are_refused():
    labels = np.arange(30 * 30).reshape(30, 30)
    with pytest.raises(ValueError, match=r"a\.png holds 900 masks, at most 500 are possible"):
        masks_at((30, 30), labels, (30, 30), "a.png")


def test_resizing_takes_the_nearest_pixel():
    np.testing.assert_array_equal(resize_nearest(np.arange(6)[None], (1, 3)), [[1, 3, 5]])
    np.testing.assert_array_equal(resize_nearest(np.arange(2)[None], (2, 5))[1], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(resize_nearest(LABELS, LABELS.shape), LABELS)


@pytest.mark.parametrize("size, image_size", [((40, 60), (80, 120)), ((90, 50), (45, 25))])
def test_an_image_finds_its_masks(tmp_path, size, image_size):
    left = np.zeros(size, dtype=np.uint8)
    left[:, : size[1] // 2] = 1
    save(tmp_path / "masks" / "park.png", left)
    save(tmp_path / "masks" / "other.png", left)
    files = Precomputed.find(str(tmp_path))
    found = files.look_up("s3://bucket/photos/park.jpg", size, image_size)
    assert (found.query_embeds_QD, found.void_logits_Q) == (None, None)
    padded = padded_size(image_size, 32)
    assert found.mask_logits_Qhw.shape == (2, padded[0] // 4, padded[1] // 4)
    masks_QHW = (mask_probs(found.mask_logits_Qhw, padded, image_size) > 0.5).numpy()
    expected = np.arange(image_size[1]) < image_size[1] // 2
    assert (masks_QHW[1] == expected).mean() > 0.95  # cells are 4 pixels wide
    assert (masks_QHW[0] == ~expected).mean() > 0.95


def test_of_equal_stems_the_folder_decides(tmp_path):
    for folder, masks in [("park", STACK), ("zoo", STACK[:1])]:
        save(tmp_path / folder / "1.npy", masks)
    files = Precomputed.find(str(tmp_path))
    assert len(files.look_up("photos/zoo/1.jpg", (3, 4), (3, 4)).mask_logits_Qhw) == 1
    assert len(files.look_up("photos/park/1.jpg", (3, 4), (3, 4)).mask_logits_Qhw) == 2


def test_an_image_may_have_no_mask_at_all(tmp_path):
    save(tmp_path / "a.npy", STACK[:0])
    save(tmp_path / "b.npy", np.full((3, 4), -1))
    files = Precomputed.find(str(tmp_path))
    for uri in ("a.jpg", "b.jpg"):
        assert files.look_up(uri, (3, 4), (3, 4)).mask_logits_Qhw.shape == (0, 8, 8)


def test_an_image_without_a_file_is_told(tmp_path):
    save(tmp_path / "a.npy", STACK)
    with pytest.raises(ValueError, match=r"b\.jpg has no mask file in "):
        Precomputed.find(str(tmp_path)).look_up("b.jpg", (3, 4), (3, 4))


def test_the_card_needs_a_directory_of_masks_and_knows_its_content(tmp_path):
    with pytest.raises(ModelError, match="needs proposer_weights"):
        describe(None)
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelError, match="there are no mask files"):
            describe(str(directory))
    save(tmp_path / "a.npy", STACK)
    card = describe(str(tmp_path))
    save(tmp_path / "a.npy", ~STACK)
    assert card.weights_sha256 != describe(str(tmp_path)).weights_sha256
    assert (card.divisor, card.embedding_dim) == (32, None)
