"""Images packed in tars and Parquet files: listed, and each read again under its own uri."""

import hashlib
import io
import itertools
import os
import subprocess
import tarfile
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

from pipeline.fetching import FetchSettings, Request, fetch
from pipeline.packed import Cell, Range, split_member
from pipeline.sources import ListRules
from pipeline.stages.fetch import FetchDecode
from pipeline.web import RefusedError, WebAccess
from schemas.annotate_config import SourceSettings
from schemas.annotation import LABELLED, QUARANTINED
from schemas.errors import SourceError
from tests.export_ground import ReadRowGroups
from tests.helpers import take_inventory

EXTENSIONS = ("jpg", "png")
SETTINGS = FetchSettings(max_bytes=2**20, attempts=1, web=WebAccess(False, 5))
SIZES = [(index + 3, 2 * index + 2) for index in range(12)]


def picture(size, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, (size[0] * 9, size[1] * 7, 5)).save(buffer, kind)
    return buffer.getvalue()


PICTURES = {f"{index:03}.png": picture(size) for index, size in enumerate(SIZES)}


def write_tar(path, members, **options):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def fetched(inventory):
    requests = [
        Request(row["uri"], size_bytes=row["size_bytes"]) for row in inventory.images.to_pylist()
    ]
    return fetch(requests, SETTINGS)


def by_name(inventory):
    uris = inventory.images["uri"].to_pylist()
    return {
        uri.rpartition("/")[2]: data for uri, data in zip(uris, fetched(inventory), strict=True)
    }


def decoded(inventory):
    stage = FetchDecode(8, 32, SourceSettings(fetch_attempts=1))
    return stage(inventory.images).to_pylist()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_a_tar_are_read_as_ranges_of_it(tmp_path, form):
    members = {}
    for name, data in PICTURES.items():
        members[f"deep/{name}"] = data
        members[f"deep/{name.removesuffix('png')}json"] = b'{"caption": "x"}'
    if form != tarfile.USTAR_FORMAT:
        members["deep/" + 150 * "é" + ".png"] = PICTURES["000.png"]
    write_tar(tmp_path / "a.tar", members, format=form)
    inventory = take_inventory(str(tmp_path / "a.tar"), EXTENSIONS)
    assert inventory.ignored == len(PICTURES)
    found = by_name(inventory)
    assert {name: found[name] for name in PICTURES} == PICTURES
    assert len(found) == len(inventory.images) == len(members) - len(PICTURES)
    sizes = inventory.images["size_bytes"].to_pylist()
    assert sizes == [len(data) for data in fetched(inventory)]
    assert set(inventory.images["etag"].to_pylist()) != {None}
    rows = decoded(inventory)
    assert {row["status"] for row in rows} == {LABELLED}
    assert {(row["width"], row["height"]) for row in rows} == set(SIZES)


def test_only_regular_members_with_an_extension_of_images_are_taken(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("d.png", tarfile.DIRTYPE), ("l.png", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, data in (("a.png", PICTURES["000.png"]), ("b.gif", b"GIF"), ("empty.png", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    inventory = take_inventory(str(tmp_path / "a.tar"), EXTENSIONS)
    assert by_name(inventory) == {"a.png": PICTURES["000.png"], "empty.png": b""}
    errors = {row["uri"][-9:]: row["error"] for row in decoded(inventory)}
    assert errors["empty.png"]["code"] == "empty_file"
    everything = take_inventory(str(tmp_path / "a.tar"), ("*",))
    assert set(by_name(everything)) == {"a.png", "empty.png", "b.gif"}


def test_a_damaged_tar_stands_for_the_images_that_it_lost(tmp_path):
    whole = write_tar(None, PICTURES)
    (tmp_path / "cut.tar").write_bytes(whole[: 512 * 5 + 100])
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 100)
    inventory = take_inventory(str(tmp_path / "*.tar"), EXTENSIONS)
    rows = {row["uri"].rpartition("/")[2]: row for row in decoded(inventory)}
    assert rows["000.png"]["status"] == LABELLED
    assert rows["cut.tar"]["status"] == rows["text.tar"]["status"] == QUARANTINED
    assert rows["text.tar"]["error"]["code"] == "not_an_image"


def tar_of(*members):
    """Return a tar's members as they stand in it, header and data, and what follows them."""
    whole = write_tar(None, {name: PICTURES[name] for name in members})
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        starts = [info.offset for info in tar]
        end = (tar.getmembers()[-1].offset_data + tar.getmembers()[-1].size + 511) // 512 * 512
    cuts = [*starts, end, len(whole)]
    return [whole[start:stop] for start, stop in itertools.pairwise(cuts)]


def one_bit(data):
    return data[:120] + bytes([data[120] ^ 1]) + data[121:]


@pytest.mark.parametrize(
    "damage, names",
    [
        (lambda a, b, c, end: a + b + one_bit(c) + end, ["000.png", "001.png", "a.tar"]),
        (lambda a, b, c, end: a + bytes(512) + b[512:] + c + end, ["000.png", "a.tar"]),
        (lambda a, b, c, end: a + b, ["000.png", "001.png", "a.tar"]),
        (lambda a, b, c, end: a + b + c[:100], ["000.png", "001.png", "a.tar"]),
        (lambda a, b, c, end: a + end + b + end, ["000.png", "a.tar"]),
        (lambda a, b, c, end: a + b + end + bytes(2**21) + b"x", ["000.png", "001.png", "a.tar"]),
        (lambda a, b, c, end: a + b + bytes(512), ["000.png", "001.png"]),
        (lambda a, b, c, end: a + b + bytes(2**21), ["000.png", "001.png"]),
    ],
    ids=["bit of a header", "hole", "cut between", "cut in a header", "cat", "more after the end",
         "one block of zeros", "many blocks of zeros"],
)  # fmt: skip
def test_a_tar_ends_in_zeros_or_stands_for_what_it_lost(tmp_path, damage, names):
    (tmp_path / "a.tar").write_bytes(damage(*tar_of("000.png", "001.png", "002.png")))
    inventory = take_inventory(str(tmp_path / "a.tar"), EXTENSIONS)
    found = sorted(uri.rpartition("/")[2] for uri in inventory.images["uri"].to_pylist())
    assert found == names


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "posix", "ustar", "v7"])
def test_tars_of_the_tar_command_end_well(tmp_path, form):
    for name, data in PICTURES.items():
        (tmp_path / name).write_bytes(data)

    def tar(*words):
        subprocess.run(["tar", f"--format={form}", *words], cwd=tmp_path, check=True)

    tar("-cf", "a.tar", "000.png", "001.png")
    tar("-b1", "-cf", "b.tar", "002.png", "003.png")
    tar("-Af", "a.tar", "b.tar")
    tar("-rf", "a.tar", "004.png")
    tar("--delete", "-f", "a.tar", "001.png")
    inventory = take_inventory(str(tmp_path / "a.tar"), EXTENSIONS)
    assert by_name(inventory) == {f"{n:03}.png": PICTURES[f"{n:03}.png"] for n in (0, 2, 3, 4)}


def test_a_tar_of_a_list_that_is_missing_is_named(tmp_path):
    (tmp_path / "list.txt").write_text(f"{tmp_path}/missing.tar\n{tmp_path}/x.png\n")
    with pytest.raises(SourceError, match=r"cannot read file://.*/missing\.tar: it does not exist"):
        take_inventory(str(tmp_path / "list.txt"), EXTENSIONS)


def test_tars_in_a_folder_are_opened_where_the_extensions_say_so(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.png": PICTURES["000.png"], "y.jpg": picture((4, 4), "JPEG")})
    write_tar(tmp_path / "b.tar", {"z.png": PICTURES["001.png"]})
    (tmp_path / "c.png").write_bytes(PICTURES["002.png"])
    plain = take_inventory(str(tmp_path), EXTENSIONS)
    assert (list(by_name(plain)), plain.ignored) == (["c.png"], 2)
    opened = take_inventory(str(tmp_path), ("png", "tar"))
    assert list(by_name(opened)) == ["x.png", "z.png", "c.png"]
    assert opened.ignored == 1
    # `tar` alone says nothing of what an image is called.
    assert list(by_name(take_inventory(str(tmp_path), ("tar",)))) == ["x.png", "y.jpg", "z.png"]


def test_a_list_of_shards_stands_for_their_images(tmp_path):
    for shard in ("a", "b"):
        write_tar(
            tmp_path / f"{shard}.tar", {f"{shard}-{name}": PICTURES[name] for name in PICTURES}
        )
    (tmp_path / "x.png").write_bytes(PICTURES["000.png"])
    (tmp_path / "list.txt").write_text(
        f"{tmp_path}/a.tar\nfile://{tmp_path}/b.tar\n{tmp_path}/x.png\n"
    )
    inventory = take_inventory(str(tmp_path / "list.txt"), EXTENSIONS)
    assert len(inventory.images) == 2 * len(PICTURES) + 1
    assert by_name(inventory)["b-003.png"] == PICTURES["003.png"]


def test_a_rewritten_shard_has_new_etags(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.png": PICTURES["000.png"]})
    before = take_inventory(str(tmp_path / "a.tar"), EXTENSIONS).images["etag"].to_pylist()
    write_tar(tmp_path / "a.tar", {"x.png": PICTURES["000.png"][:-1] + b"!"})
    os.utime(tmp_path / "a.tar", (1, 1))
    after = take_inventory(str(tmp_path / "a.tar"), EXTENSIONS).images["etag"].to_pylist()
    assert before != after


def test_datasets_of_hugging_face_are_read_with_their_paths(tmp_path):
    images = [{"bytes": data, "path": name} for name, data in PICTURES.items()]
    columns = {"image": images, "label": list(range(len(images)))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict(columns, features)
    table.to_parquet(tmp_path / "train.parquet", batch_size=5)
    inventory = take_inventory(str(tmp_path / "train.parquet"), EXTENSIONS)
    assert by_name(inventory) == PICTURES
    assert inventory.images["uri"][0].as_py().endswith("train.parquet#row=000000000/image/000.png")
    assert {row["status"] for row in decoded(inventory)} == {LABELLED}


def test_rows_of_any_row_group_and_in_any_order_are_found(tmp_path):
    images = [*PICTURES.values(), None]
    other = [b"x"] * len(images)
    table = pa.table({"id": list(range(len(images))), "photo": images, "other": other})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    with pytest.raises(SourceError, match=r"several columns of images \(photo, other\)"):
        take_inventory(str(tmp_path / "a.parquet"), EXTENSIONS)
    with pytest.raises(SourceError, match=r"'id', which is no column of images .* photo, other"):
        take_inventory(str(tmp_path / "a.parquet"), EXTENSIONS, ListRules(image_column="id"))
    rules = ListRules(image_column="photo")
    inventory = take_inventory(str(tmp_path / "a.parquet"), EXTENSIONS, rules)
    uris = inventory.images["uri"].to_pylist()
    *found, null = fetched(inventory)
    assert found == list(PICTURES.values())
    _, *backwards = fetch([Request(uri) for uri in reversed(uris)], SETTINGS)
    assert backwards == found[::-1]
    # A row beyond the end, and a column that holds no images.
    past, wrong = fetch(
        [Request(f"file://{tmp_path}/a.parquet#row={row}/{column}")
         for row, column in ((99, "photo"), (1, "id"))],
        SETTINGS,
    )  # fmt: skip
    assert [type(error) for error in (null, wrong, past)] == [
        ValueError, ValueError, FileNotFoundError
    ]  # fmt: skip
    rows = decoded(inventory)
    assert rows[-1]["error"] == {
        "stage": "fetch", "code": "unreadable", "message": "ValueError: the row holds no image",
    }  # fmt: skip


def test_row_groups_are_kept_up_to_a_weight(tmp_path, monkeypatch):
    images = [bytes([number]) * 10_000 for number in range(8)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=2)
    requests = [Request(f"file://{tmp_path}/a.parquet#row={row}/image") for row in range(8)]

    def groups_read(kept_bytes, *rows):
        read = ReadRowGroups(monkeypatch)
        for row in rows:
            settings = replace(SETTINGS, kept_bytes=kept_bytes)
            assert fetch([requests[row]], settings) == [images[row]]
        return read

    assert groups_read(0, 0, 1, 2, 0, 3) == [0, 1, 0, 1]
    assert groups_read(2**20, 0, 2, 4, 6, 1, 3, 5, 7) == [0, 1, 2, 3]
    # About 20,000 bytes each: two together, and the one that was used last stays.
    assert groups_read(50_000, 0, 2, 0, 4, 0, 2) == [0, 1, 2, 1]
    read = ReadRowGroups(monkeypatch)
    order = [5, 0, 7, 2, 1, 6, 4, 3]
    assert fetch([requests[row] for row in order], SETTINGS) == [images[row] for row in order]
    assert read == [0, 1, 2, 3]


def test_a_rewritten_parquet_file_is_read_again(tmp_path):
    for images in ([b"old", b"one"], [b"newer", b"two", b"three"]):
        pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=2)
        inventory = take_inventory(str(tmp_path / "a.parquet"), EXTENSIONS)
        assert fetched(inventory) == images
    (tmp_path / "a.parquet").unlink()
    assert {type(result) for result in fetched(inventory)} == {FileNotFoundError}


def test_a_parquet_file_of_uris_stays_a_list_of_them(tmp_path):
    (tmp_path / "x.png").write_bytes(PICTURES["000.png"])
    table = pa.table({"uri": [str(tmp_path / "x.png")], "image": [b"not looked at"]})
    pq.write_table(table, tmp_path / "list.parquet")
    inventory = take_inventory(str(tmp_path / "list.parquet"), EXTENSIONS)
    assert inventory.images["uri"].to_pylist() == [f"file://{tmp_path}/x.png"]
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "list.parquet")
    with pytest.raises(SourceError, match="no column `uri`"):
        take_inventory(str(tmp_path / "list.parquet"), EXTENSIONS)


@pytest.mark.s3
def test_shards_in_a_store_are_read_by_range(s3_server):
    fs = s3fs.S3FileSystem()
    fs.mkdir("shards")
    fs.pipe_file("shards/a.tar", write_tar(None, PICTURES))
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": list(PICTURES.values())}), sink, row_group_size=3)
    fs.pipe_file("shards/b.parquet", sink.getvalue())
    tar = take_inventory("s3://shards/*.tar", EXTENSIONS)
    assert by_name(tar) == PICTURES
    table = take_inventory("s3://shards/b.parquet", EXTENSIONS)
    assert fetched(table) == list(PICTURES.values())
    (row,) = {row["etag"] for row in tar.images.to_pylist()}
    assert row == hashlib.md5(write_tar(None, PICTURES)).hexdigest()


def test_a_shard_that_became_shorter_gives_no_half_images(tmp_path):
    write_tar(tmp_path / "a.tar", PICTURES)
    inventory = take_inventory(str(tmp_path / "a.tar"), EXTENSIONS)
    with open(tmp_path / "a.tar", "r+b") as file:
        file.truncate(512 + 20)
    assert all(isinstance(result, ConnectionError) for result in fetched(inventory))


def test_a_member_over_the_limit_is_not_read_whole(tmp_path):
    write_tar(tmp_path / "a.tar", {"big.png": b"x" * 5000})
    (row,) = take_inventory(str(tmp_path / "a.tar"), EXTENSIONS).images.to_pylist()
    settings = FetchSettings(max_bytes=100, attempts=1, web=WebAccess(False, 5))
    assert fetch([Request(row["uri"])], settings) == [b"x" * 101]
    stage = FetchDecode(8, 32, SourceSettings(max_image_bytes=100))
    inventory = take_inventory(str(tmp_path / "a.tar"), EXTENSIONS)
    assert stage(inventory.images).to_pylist()[0]["error"]["code"] == "too_many_bytes"


def test_packed_files_of_the_web_are_refused():
    with pytest.raises(SourceError, match="not from the web"):
        take_inventory("https://example.org/a.tar", EXTENSIONS, ListRules(WebAccess(False, 5)))
    (result,) = fetch([Request("https://example.org/a.tar#bytes=1-2/x.png")], SETTINGS)
    assert isinstance(result, RefusedError)


@pytest.mark.parametrize(
    "uri, expected",
    [
        ("s3://b/a.png", ("s3://b/a.png", None)),
        ("file:///a.tar#bytes=5-9/x#y.png", ("file:///a.tar", Range(5, 10))),
        ("file:///A.TAR#bytes=512-511/x\ny", ("file:///A.TAR", Range(512, 512))),
        ("file:///a.parquet#row=7/image", ("file:///a.parquet", Cell(7, "image"))),
        ("hf://d/o/n/a.parquet#row=7/image/p/q.png", ("hf://d/o/n/a.parquet", Cell(7, "image"))),
        ("file:///a.png#bytes=5-9/x.png", ("file:///a.png#bytes=5-9/x.png", None)),
        ("file:///a.tar", ("file:///a.tar", None)),
        ("file:///a.tar#bytes=x-9/x.png", ("file:///a.tar#bytes=x-9/x.png", None)),
    ],
)
def test_a_uri_is_split_into_file_and_place(uri, expected):
    assert split_member(uri) == expected
