"""The stages called directly, and all of them in a row, without Ray."""

import io
import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from PIL import Image
from safetensors.torch import load_file, save_file

import pipeline.fetching
import pipeline.stages.fetch
from pipeline.fusion import fuse, query_probs, region_probs
from pipeline.masks import mask_probs, pack_logits
from pipeline.models import Proposals
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crops import CropSettings, crop_regions
from pipeline.prompts import text_classifier
from pipeline.resize import padded_size
from pipeline.segments import decode_label_map
from pipeline.stages.fetch import FetchDecode
from pipeline.stages.propose import Propose
from pipeline.stages.rows import isolate, quarantine
from schemas.annotate_config import SourceSettings
from schemas.annotation import (
    ANNOTATED,
    ANNOTATED_AND_EMBEDDED,
    DECODED,
    EMBEDDED,
    INVENTORY,
    LABELLED,
    PROPOSED,
    QUARANTINED,
    conform,
    image_id,
    table_from_rows,
)
from schemas.errors import ModelError
from schemas.vocabulary import Vocabulary
from tests.classify import make_classify
from tests.dataset_checks import check_rows
from tests.helpers import save_tiny_clip, take_inventory

NAMES = ("sky", "cat", "tree")
FETCH = FetchDecode(48, 96, SourceSettings(max_image_bytes=50_000, max_image_pixels=100_000))
PROPOSE = Propose("felzenszwalb", None, 32, "float16")


def red_half(height, width, side="left"):
    """Return an image that is red on one side and black on the other."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    half = slice(None, width // 2) if side == "left" else slice(width // 2, None)
    pixels[:, half] = (200, 30, 40)
    return pixels


def png(height, width, side="left"):
    buffer = io.BytesIO()
    Image.fromarray(red_half(height, width, side)).save(buffer, "PNG")
    return buffer.getvalue()


def inventory(*uris, size_bytes=None):
    rows = [{"image_id": image_id(uri), "uri": uri, "size_bytes": size_bytes} for uri in uris]
    return table_from_rows(rows, INVENTORY)


def by_name(table):
    return {row["uri"].rpartition("/")[2]: row for row in table.to_pylist()}


def reasons(table):
    return {
        name: row["error"] and f"{row['error']['stage']}/{row['error']['code']}"
        for name, row in by_name(table).items()
    }


@pytest.fixture
def folder(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "wide.png").write_bytes(png(60, 120))
    (photos / "mirror.png").write_bytes(png(60, 120, "right"))
    (photos / "high.png").write_bytes(png(90, 40))
    (photos / "truncated.png").write_bytes(png(60, 120)[:-40])
    (photos / "text.png").write_bytes(b"not pixels")
    (photos / "empty.png").write_bytes(b"")
    (photos / "heavy.png").write_bytes(png(8, 8) + b"\x00" * 60_000)
    (photos / "huge.png").write_bytes(png(400, 400))
    return photos


VERDICTS = {
    "wide.png": None,
    "mirror.png": None,
    "high.png": None,
    "truncated.png": "decode/corrupt",
    "text.png": "decode/not_an_image",
    "empty.png": "decode/empty_file",
    "heavy.png": "fetch/too_many_bytes",
    "huge.png": "decode/too_many_pixels",
}


def test_good_files_become_images_and_bad_ones_rows_with_a_reason(folder):
    listed = take_inventory(str(folder), ("png",)).images
    (folder / "gone.png").write_bytes(b"x")
    listed = take_inventory(str(folder), ("png",)).images
    (folder / "gone.png").unlink()
    decoded = conform(FETCH(listed), DECODED)
    assert reasons(decoded) == VERDICTS | {"gone.png": "fetch/not_found"}
    assert decoded["image_id"].to_pylist() == listed["image_id"].to_pylist()


def test_a_decoded_row_has_the_original_and_the_resized_size(folder):
    row = by_name(FETCH(take_inventory(str(folder), ("png",)).images))["wide.png"]
    assert (row["status"], row["error"], row["exif_orientation"]) == (LABELLED, None, 1)
    assert (row["height"], row["width"]) == (60, 120)
    assert (row["image_height"], row["image_width"]) == (48, 96)
    pixels = np.frombuffer(row["image"], dtype=np.uint8).reshape(48, 96, 3)
    assert pixels[24, 20].tolist() == [200, 30, 40]
    assert pixels[24, 80].tolist() == [0, 0, 0]
    assert len(row["bytes_sha256"]) == 64


def test_a_bad_row_has_no_pixels_but_keeps_its_hash(folder):
    rows = by_name(FETCH(take_inventory(str(folder), ("png",)).images))
    assert rows["truncated.png"]["bytes_sha256"]
    assert not rows["heavy.png"]["bytes_sha256"]
    for name in ("truncated.png", "heavy.png"):
        assert (rows[name]["image"], rows[name]["height"]) == (None, None)


def test_the_size_limit_holds_where_the_list_knew_no_size(folder):
    uris = [f"file://{folder}/heavy.png", f"file://{folder}/wide.png"]
    assert reasons(FETCH(inventory(*uris))) == {
        "heavy.png": "fetch/too_many_bytes",
        "wide.png": None,
    }


def test_a_listed_size_over_the_limit_is_not_even_fetched():
    found = FETCH(inventory("file:///nowhere/x.png", size_bytes=50_001))
    assert reasons(found) == {"x.png": "fetch/too_many_bytes"}
    assert "50001 bytes are over the limit of 50000" in found["error"][0].as_py()["message"]


def test_places_that_hold_no_file_are_told_apart(folder):
    uris = [f"file://{folder}", "ftp://host/a.png", "memory://nowhere/b.png"]
    assert reasons(FETCH(inventory(*uris))) == {
        "photos": "fetch/unreadable",
        "a.png": "fetch/unreadable",
        "b.png": "fetch/not_found",
    }


def test_an_oriented_photo_is_decoded_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "a.jpg", exif=exif)
    row = by_name(FETCH(take_inventory(str(tmp_path), ("jpg",)).images))["a.jpg"]
    assert (row["exif_orientation"], row["height"], row["width"]) == (6, 80, 40)
    assert (row["image_height"], row["image_width"]) == (96, 48)


@pytest.mark.parametrize(
    "pixels, short_edge, rows",
    [(24, 24, [256, 44]), (24, 700, [8] * 37 + [4]), (24, 512, [16] * 18 + [12])],
    ids=["small", "large", "between"],
)
def test_tables_are_as_large_as_pixels_allow_and_leave_batches_no_rest(
    tmp_path, monkeypatch, pixels, short_edge, rows
):
    # As if these were photos: what counts is bytes of pixels after resizing.
    scale = (short_edge / pixels) ** 2
    monkeypatch.setattr(pipeline.stages.fetch, "_TABLE_BYTES", 16 * 2**20 / scale)
    file = tmp_path / "a.png"
    file.write_bytes(png(pixels, pixels))
    images = inventory(*[f"file://{file}"] * 300)
    stage = FetchDecode(pixels, 2 * pixels, SourceSettings())
    tables = list(stage.each(images))
    assert [len(table) for table in tables] == rows
    assert pa.concat_tables(tables) == stage(images)


def test_an_empty_batch_passes_every_stage(classify):
    decoded = conform(FETCH(INVENTORY.empty_table()), DECODED)
    proposed = conform(PROPOSE(decoded), PROPOSED)
    assert conform(classify()(proposed), ANNOTATED).num_rows == 0


@pytest.fixture
def flaky_store(monkeypatch):
    """A store under az:// that fails as many times as a file's name says."""
    monkeypatch.setattr(pipeline.fetching, "_BACKOFF_S", 0.0)
    asked = []

    class FlakyStore(MemoryFileSystem):
        protocol = "az"
        cachable = False

        def cat_file(self, path, start=None, end=None, **options):
            asked.append(path)
            if "denied" in path:
                raise PermissionError("Forbidden")
            if asked.count(path) <= int(path.rpartition("-")[2].partition(".")[0]):
                raise OSError("SlowDown: reduce your rate")
            return png(60, 120)

    fsspec.register_implementation("az", FlakyStore, clobber=True)
    yield asked
    del _registry["az"]


def test_a_fetch_that_fails_for_a_moment_is_tried_again(flaky_store):
    uris = [f"az://box/{name}.png" for name in ("good-0", "slow-2", "dead-9", "denied-0")]
    assert reasons(FETCH(inventory(*uris))) == {
        "good-0.png": None,
        "slow-2.png": None,
        "dead-9.png": "fetch/unavailable",
        "denied-0.png": "fetch/access_denied",
    }
    tries = {
        uri: sum(path.endswith(uri.rpartition("/")[2]) for path in flaky_store) for uri in uris
    }
    assert list(tries.values()) == [1, 3, 4, 1]


def numbered(count):
    return [
        {"image_id": str(number), "number": number, "status": LABELLED} for number in range(count)
    ]


def double(rows):
    """Fail where any number is 2; else return each row with its double."""
    if any(row["number"] == 2 for row in rows):
        raise ValueError("two is bad\nand more")
    return [{**row, "doubled": 2 * row["number"]} for row in rows]


def test_one_bad_row_of_several_is_quarantined_and_keeps_its_place():
    rows = isolate(double, numbered(4), "propose")
    assert [row["status"] for row in rows] == [LABELLED, LABELLED, QUARANTINED, LABELLED]
    assert [row.get("doubled") for row in rows] == [0, 2, None, 6]
    assert rows[2]["error"] == {
        "stage": "propose",
        "code": "model_failure",
        "message": "ValueError: two is bad",
    }


def test_a_failure_that_all_rows_share_is_raised():
    def fail(rows):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        isolate(fail, numbered(3), "propose")


def test_a_failure_that_all_sizes_of_images_share_is_raised():
    class Broken:
        def propose(self, images):
            raise RuntimeError("CUDA error: unspecified launch failure")

    stage = Propose("felzenszwalb", None, 32, "float16")
    stage.__dict__["model"] = Broken()
    rows = [decoded_row(str(width), 9, width) for width in (64, 96, 128)]
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        stage(table_from_rows(rows, DECODED))
    # One alone may be the image's fault.
    (found,) = stage(table_from_rows(rows[:1], DECODED)).to_pylist()
    assert (found["status"], found["n_proposals"]) == (QUARANTINED, 0)


def test_a_gpu_out_of_memory_gets_smaller_batches():
    sizes = []

    def hungry(rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows

    assert isolate(hungry, numbered(8), "propose") == numbered(8)
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


def test_an_image_too_large_for_the_gpu_is_quarantined_as_such():
    def hungry(rows):
        if any(row["number"] == 3 for row in rows):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows

    codes = [row.get("error") and row["error"]["code"] for row in isolate(hungry, numbered(5), "x")]
    assert codes == [None, None, None, "out_of_gpu_memory", None]


def test_a_row_that_is_alone_is_quarantined():
    assert isolate(double, numbered(3)[2:], "propose")[0]["status"] == QUARANTINED
    assert isolate(double, [], "propose") == []


def test_a_missing_model_is_no_images_fault():
    def fail(rows):
        raise ModelError("absent")

    for count in (1, 3):
        with pytest.raises(ModelError):
            isolate(fail, numbered(count), "propose")


def test_a_quarantined_row_loses_its_pixels_and_a_long_message_its_end():
    row = quarantine({"uri": "a", "image": b"123", "status": LABELLED}, "decode", "bad", "x" * 9999)
    assert (row["uri"], row["status"], row["image"]) == ("a", QUARANTINED, None)
    assert len(row["error"]["message"]) == 500


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return ClipSource(save_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def text_KD(clip):
    return text_classifier(Clip.load(clip).encode_text, Vocabulary.of(NAMES), ("a photo of a {}.",))


@pytest.fixture
def classify(clip, text_KD):
    def build(**changes):
        return make_classify(
            changes.pop("clip", clip),
            text_KD,
            changes.pop("names", NAMES),
            **{"crop_batch": 3, **changes},
        )

    return build


@pytest.fixture(scope="module")
def colours_KD(clip):
    """Class vectors of red and black: CLIP's own vectors of the halves of an image."""
    image_3HW = torch.from_numpy(red_half(48, 96)).permute(2, 0, 1)
    left_HW = (torch.arange(96) < 48).expand(48, 96)
    model = Clip.load(clip)
    cut = crop_regions(
        image_3HW,
        torch.stack([left_HW, ~left_HW]).float(),
        CropSettings(),
        side=model.side,
        mean=model.mean,
        std=model.std,
    )
    return model.encode_crops(cut.crops_V3SS, 2).numpy()


@pytest.mark.parametrize("precision", ["float32", "float16", "uint8"])
def test_a_folder_goes_through_all_stages_to_label_maps(
    folder, classify, colours_KD, precision, caplog
):
    listed = take_inventory(str(folder), ("png",)).images
    stage = classify(
        precision=precision,
        query_text_KD=colours_KD,
        region_text_KD=colours_KD,
        names=("red", "black"),
    )
    proposed = conform(Propose("felzenszwalb", None, 32, precision)(FETCH(listed)), PROPOSED)
    table = conform(stage(proposed), ANNOTATED)

    assert reasons(table) == VERDICTS
    assert table["image_id"].to_pylist() == listed["image_id"].to_pylist()
    check_rows(table.to_pylist(), whole=True)
    rows = by_name(table)
    for name, size, left, right in [
        ("wide.png", (60, 120), 0, 1),
        ("mirror.png", (60, 120), 1, 0),
        ("high.png", (90, 40), 0, 1),
    ]:
        label_map_HW = decode_label_map(rows[name]["segments"], size)
        # Away from the edge between them each half has the label of its colour.
        assert (label_map_HW[:, : size[1] // 2 - 8] == left).all()
        assert (label_map_HW[:, size[1] // 2 + 8 :] == right).all()
        assert rows[name]["n_proposals"] > 0
        assert rows[name]["coverage"] == 1
        assert 0 < rows[name]["mean_score"] <= 1
    assert {name: row["fingerprint"] for name, row in rows.items()} == {
        name: "d" if verdict else "l" for name, verdict in VERDICTS.items()
    }
    assert caplog.records == []  # no batch failed and was tried image by image


def test_images_of_one_batch_do_not_change_each_others_labels(folder, classify, colours_KD):
    decoded = FETCH(take_inventory(str(folder), ("png",)).images)
    stage = classify(query_text_KD=colours_KD, region_text_KD=colours_KD, names=("red", "black"))
    whole = by_name(stage(PROPOSE(decoded)))
    for name in ("wide.png", "mirror.png", "high.png"):
        row = table_from_rows([by_name(decoded)[name]], DECODED)
        alone = by_name(stage(PROPOSE(row)))[name]
        for one, other in zip(alone["segments"], whole[name]["segments"], strict=True):
            assert one.pop("score") == pytest.approx(other.pop("score"))
            assert one == other


def proposed_row(uri="file:///a.png", size=(40, 70), original=(30, 90), queries=5, head=True):
    """Return a PROPOSED row of a random image and random proposals, half of them small."""
    generator = torch.Generator().manual_seed(0)
    height, width = (edge // 4 for edge in padded_size(size, 32))
    logits_Qhw = 3 * torch.randn(queries, height, width, generator=generator)
    logits_Qhw[1:2] = -5.0  # never above the threshold: invalid
    embeds_QD = torch.nn.functional.normalize(torch.randn(queries, 16, generator=generator), dim=1)
    void_Q = torch.full((queries,), 10.0)
    image = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
    return {
        "image_id": image_id(uri),
        "uri": uri,
        "status": LABELLED,
        "height": original[0],
        "width": original[1],
        "image": image.numpy().tobytes(),
        "image_height": size[0],
        "image_width": size[1],
        "mask_logits": pack_logits(logits_Qhw, "float32").tobytes(),
        "mask_height": height,
        "mask_width": width,
        "n_proposals": queries,
        "query_embeds": embeds_QD.numpy().tobytes() if head else None,
        "void_logits": void_Q.numpy().tobytes() if head else None,
    }


def proposals(*rows):
    return table_from_rows(rows, PROPOSED)


def floats(data, *shape):
    return torch.from_numpy(np.frombuffer(data, dtype=np.float32).copy()).reshape(shape)


def computed_apart(row, clip, text_KD, seen, weight, ensemble=True):
    """Return the label map of `row` by the dense formula, from the functions of each step."""
    size = (row["image_height"], row["image_width"])
    text = torch.from_numpy(text_KD)
    logits = floats(row["mask_logits"], -1, row["mask_height"], row["mask_width"])
    masks_QHW = mask_probs(logits, padded_size(size, 32), size)
    query_QK = query_probs(
        floats(row["query_embeds"], -1, 16), text, floats(row["void_logits"], -1)
    )
    if ensemble:
        image_HW3 = np.frombuffer(row["image"], dtype=np.uint8).reshape(*size, 3)
        model = Clip.load(clip)
        cut = crop_regions(
            torch.from_numpy(image_HW3.copy()).permute(2, 0, 1),
            masks_QHW,
            CropSettings(),
            side=model.side,
            mean=model.mean,
            std=model.std,
        )
        region_VK = region_probs(model.encode_crops(cut.crops_V3SS, 1), text)
        scores_QK = fuse(query_QK, region_VK, cut.valid_Q, torch.tensor(seen), weight)
    else:
        scores_QK = query_QK
    summed_KHW = torch.einsum("qk,qhw->khw", scores_QK, masks_QHW)
    resized = torch.nn.functional.interpolate(
        summed_KHW[None], size=(row["height"], row["width"]), mode="bilinear", align_corners=False
    )
    return resized[0].argmax(dim=0).numpy()


@pytest.mark.parametrize(
    "ensemble, weight, seen",
    [
        (True, 0.8, (True, True, False)),
        (True, 0.4, (False, True, False)),
        (True, 0.0, (True, True, True)),
        (False, 0.8, (True, True, False)),
    ],
    ids=["coco", "cityscapes", "clip alone", "query alone"],
)
def test_the_stage_gives_the_label_map_of_its_parts(
    classify, clip, text_KD, ensemble, weight, seen
):
    row = proposed_row()
    stage = classify(precision="float32", seen=seen, ensemble_weight=weight, asks_clip=ensemble)
    (labelled,) = conform(stage(proposals(row)), ANNOTATED).to_pylist()
    found_HW = decode_label_map(labelled["segments"], (30, 90))
    expected_HW = computed_apart(row, clip, text_KD, seen, weight, ensemble)
    assert len(np.unique(expected_HW)) > 1
    # A rounding may move single pixels whose two best classes are equal to six digits.
    assert (found_HW == expected_HW).mean() > 0.999
    check_rows([labelled], whole=True)


def test_kept_embeddings_are_all_that_the_labels_need(classify):
    row = proposed_row()
    stage = classify(precision="float32", keep_embeddings="exact", seen=(True, False, True))
    kept = conform(stage(proposals(row)), ANNOTATED_AND_EMBEDDED)
    assert "image" not in kept.column_names
    assert kept["embedding_fingerprint"].to_pylist() == ["e"]
    again = conform(stage.label(kept.select(EMBEDDED.names)), ANNOTATED)
    assert again == kept.select(ANNOTATED.names).cast(ANNOTATED)
    other = classify(precision="float32", seen=(False, True, False), ensemble_weight=0.3)
    relabelled = other.label(kept.select(EMBEDDED.names))
    assert relabelled == other(proposals(row))
    assert relabelled != again


def test_without_a_query_head_clip_decides_alone(classify, clip, text_KD):
    stage = classify(precision="float32", seen=(True, False, True))
    with_head = classify(precision="float32", seen=(True, False, True), ensemble_weight=0.0)
    (headless,) = stage(proposals(proposed_row(head=False))).to_pylist()
    (clip_only,) = with_head(proposals(proposed_row())).to_pylist()
    assert headless == clip_only


def test_pixels_under_the_score_floor_are_left_without_label(classify):
    (every,) = classify(precision="float32")(proposals(proposed_row())).to_pylist()
    floor = every["mean_score"]
    (some,) = classify(precision="float32", min_score=floor)(proposals(proposed_row())).to_pylist()
    (none,) = classify(precision="float32", min_score=1.0)(proposals(proposed_row())).to_pylist()
    assert every["coverage"] == 1 > some["coverage"] > 0 == none["coverage"]
    assert some["mean_score"] > floor
    assert (none["mean_score"], none["segments"], none["status"]) == (None, [], LABELLED)
    check_rows([every], whole=True)
    check_rows([some], whole=False)


@pytest.mark.parametrize(
    "head, ensemble",
    [(True, True), (True, False), (False, True)],
    ids=["both", "query alone", "clip alone"],
)
def test_an_image_without_proposals_is_labelled_nowhere(classify, head, ensemble):
    row = proposed_row(queries=0, head=head)
    (found,) = classify(precision="float32", asks_clip=ensemble)(proposals(row)).to_pylist()
    assert (found["status"], found["coverage"], found["segments"]) == (LABELLED, 0.0, [])


def test_a_row_that_breaks_the_model_is_quarantined_and_the_others_are_labelled(classify):
    broken = proposed_row("file:///broken.png") | {"mask_logits": b"1234"}
    rows = [proposed_row("file:///a.png"), broken, proposed_row("file:///b.png")]
    table = conform(classify(precision="float32")(proposals(*rows)), ANNOTATED)
    assert reasons(table) == {"a.png": None, "broken.png": "embed/model_failure", "b.png": None}
    assert [row["uri"] for row in table.to_pylist()] == [row["uri"] for row in rows]


class Brightness:
    """A proposer of one mask, whose logits are the logarithm of the image: minus infinity of 0."""

    def propose(self, images):
        grey = [torch.from_numpy(image).float().mean(dim=2)[None, ::4, ::4] for image in images]
        return [Proposals(values_1hw.log()) for values_1hw in grey]


def decoded_row(name, value, width=64):
    image = np.full((32, width, 3), value, np.uint8)
    return {
        "image_id": name, "uri": name, "status": LABELLED, "height": 32, "width": width,
        "image": image.tobytes(), "image_height": 32, "image_width": width,
    }  # fmt: skip


@pytest.mark.parametrize("width", [64, 128], ids=["with the others", "alone of its size"])
def test_an_image_whose_masks_are_not_finite_is_quarantined_and_the_others_are_not(width):
    stage = Propose("felzenszwalb", None, 32, "float16")
    stage.__dict__["model"] = Brightness()
    rows = [decoded_row("a", 9), decoded_row("black", 0, width), decoded_row("b", 7)]
    found = by_name(stage(table_from_rows(rows, DECODED)))
    assert [row["status"] for row in found.values()] == [LABELLED, QUARANTINED, LABELLED]
    assert found["black"]["error"]["code"] == "model_failure"
    assert "masks and query embeddings are not finite" in found["black"]["error"]["message"]


def test_a_clip_whose_vectors_are_not_finite_ends_the_run(tmp_path, classify):
    broken = ClipSource(save_tiny_clip(tmp_path / "broken"))
    weights = load_file(tmp_path / "broken" / "open_clip_model.safetensors")
    weights["visual.ln_post.weight"][0] = torch.inf
    save_file(weights, tmp_path / "broken" / "open_clip_model.safetensors")
    stage = classify(clip=broken, precision="float32")
    rows = [proposed_row("file:///a.png"), proposed_row("file:///b.png")]
    with pytest.raises(FloatingPointError, match="CLIP's vectors are not finite numbers"):
        stage(proposals(*rows))


def test_rows_that_were_quarantined_before_pass_through_unchanged(classify):
    row = {
        "image_id": "i",
        "uri": "file:///a.png",
        "bytes_sha256": "h",
        "status": QUARANTINED,
        "error": {"stage": "decode", "code": "corrupt", "message": "why"},
    }
    proposed = conform(PROPOSE(table_from_rows([row], DECODED)), PROPOSED)
    (found,) = conform(classify()(proposed), ANNOTATED).to_pylist()
    assert {name: found[name] for name in row} == row
    assert (found["n_proposals"], found["segments"], found["coverage"]) == (0, [], None)


def test_a_missing_clip_is_raised_not_quarantined(classify, tmp_path):
    stage = classify(precision="float32", clip=ClipSource(f"local-dir:{tmp_path}"))
    with pytest.raises(ModelError, match=r"open_clip_config\.json"):
        stage(proposals(proposed_row()))


def test_an_unknown_proposer_or_classifier_is_raised_with_what_there_is(classify, folder):
    decoded = FETCH(take_inventory(str(folder), ("png",)).images)
    with pytest.raises(ModelError, match="no proposer 'x'; there are"):
        Propose("x", None, 32, "float16")(decoded)
    with pytest.raises(ModelError, match="no classifier 'x'; there are crops"):
        classify(precision="float32", classifier="x")(proposals(proposed_row()))


@pytest.fixture
def quarters(tmp_path):
    """Two images of 60 x 120 and, beside them, maps of three regions; one image has no map."""
    images, maps = tmp_path / "images", tmp_path / "maps"
    images.mkdir()
    maps.mkdir()
    for name in ("one", "two"):
        (images / f"{name}.png").write_bytes(png(60, 120))
    regions_HW = np.zeros((60, 120), dtype=np.uint8)
    regions_HW[:, 60:] = 1
    regions_HW[40:, :60] = 2
    Image.fromarray(regions_HW).save(maps / "one.png")
    return images, maps, regions_HW


def test_precomputed_masks_are_matched_by_uri_and_a_missing_one_is_quarantined(quarters):
    images, maps, _ = quarters
    listed = take_inventory(str(images), ("png",)).images
    proposed = conform(Propose("precomputed", str(maps), 32, "float16")(FETCH(listed)), PROPOSED)
    rows = by_name(proposed)
    assert rows["one.png"]["n_proposals"] == 3
    assert rows["two.png"]["status"] == QUARANTINED
    assert "no mask file" in rows["two.png"]["error"]["message"]


def test_the_oracle_gives_each_proposal_its_true_class(quarters, classify):
    images, maps, regions_HW = quarters
    listed = take_inventory(str(images / "one.png"), ("png",)).images
    proposed = Propose("precomputed", str(maps), 32, "float16")(FETCH(listed))
    row = classify(oracle_truth=str(maps))(proposed).to_pylist()[0]
    found_HW = decode_label_map(row["segments"], (60, 120))
    # Masks travel at a quarter of the resized image, so edges may move by a few pixels.
    assert (found_HW == regions_HW).mean() > 0.95
    assert {segment["label"] for segment in row["segments"]} == set(NAMES)


@pytest.mark.parametrize("part", ["masks", "truth"])
def test_a_map_of_another_size_is_a_bad_image_and_tells_both_sizes(quarters, classify, part):
    """A truth that was resized to fit would be moved against its image."""
    images, maps, regions_HW = quarters
    Image.fromarray(regions_HW).save(maps / "two.png")
    truth = maps.with_name("truth")
    shutil.copytree(maps, truth)
    file = (maps if part == "masks" else truth) / "two.png"
    Image.fromarray(regions_HW[:, 20:]).save(file)
    listed = take_inventory(str(images), ("png",)).images
    proposed = Propose("precomputed", str(maps), 32, "float16")(FETCH(listed))
    rows = by_name(classify(oracle_truth=str(truth))(proposed))
    assert rows["one.png"]["status"] == LABELLED
    assert rows["two.png"]["status"] == QUARANTINED
    message = rows["two.png"]["error"]["message"]
    sizes = {"masks": f"masks of {file} are 60x100", "truth": f"truth {file} is 60x100"}[part]
    assert f"{sizes}, the image is 60x120" in message


def test_an_image_without_a_readable_truth_is_a_bad_image(quarters, classify):
    images, maps, regions_HW = quarters
    Image.fromarray(regions_HW).save(maps / "two.png")
    truth = maps.with_name("truth")
    truth.mkdir()
    shutil.copy(maps / "one.png", truth)
    listed = take_inventory(str(images), ("png",)).images
    proposed = Propose("precomputed", str(maps), 32, "float16")(FETCH(listed))
    rows = by_name(classify(oracle_truth=str(truth))(proposed))
    assert (rows["one.png"]["status"], rows["two.png"]["status"]) == (LABELLED, QUARANTINED)
    assert "two.png has no truth" in rows["two.png"]["error"]["message"]
    (truth / "two.png").write_bytes((truth / "one.png").read_bytes()[:-30])
    rows = by_name(classify(oracle_truth=str(truth))(proposed))
    assert "two.png cannot be read" in rows["two.png"]["error"]["message"]


def test_a_batch_in_which_no_image_has_its_masks_or_truth_does_not_end_the_run(quarters, classify):
    images, maps, regions_HW = quarters
    (maps / "one.png").rename(maps / "elsewhere.png")
    decoded = FETCH(take_inventory(str(images), ("png",)).images)
    propose = Propose("precomputed", str(maps), 32, "float16")
    assert set(reasons(propose(decoded)).values()) == {"propose/no_masks"}
    masks = maps.with_name("masks")
    masks.mkdir()
    for name in ("one", "two"):
        Image.fromarray(regions_HW).save(masks / f"{name}.png")
    proposed = Propose("precomputed", str(masks), 32, "float16")(decoded)
    labelled = conform(classify(oracle_truth=str(maps))(proposed), ANNOTATED)
    assert set(reasons(labelled).values()) == {"label/no_truth"}
