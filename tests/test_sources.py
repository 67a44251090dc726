"""From a source to the inventory; and every listed file can be fetched again under its uri."""

import errno
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from pipeline.sources import ListRules, _matching, source_place, walk
from pipeline.stages.fetch import FetchDecode
from pipeline.web import WebAccess
from schemas.annotate_config import SourceSettings
from schemas.annotation import INVENTORY, LABELLED, image_id
from schemas.errors import SourceError
from tests.helpers import take_inventory

EXTENSIONS = ("jpg", "png")
AWKWARD = [
    "a*b.png",
    "a?b.png",
    "a[b].png",
    "[x].png",
    "a::b.png",
    "zip::c.png",
    " lead and trail .png",
    "a#b.png",
    "a%20b.png",
    "a%b.png",
    "é 猫.png",
    "a\\b.png",
    "a\nb.png",
    "~.png",
    "a:b@c.png",
    "{a,b}.png",
    "-.png",
    "memory:.png",
]


def write_png(path, colour=(1, 2, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), colour).save(path, "PNG")
    return path


def names(inventory, folder):
    prefix = f"file://{folder}/"
    uris = inventory.images["uri"].to_pylist()
    assert all(uri.startswith(prefix) for uri in uris)
    return [uri.removeprefix(prefix) for uri in uris]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "deep/er/c.png", "notes.txt", "noext", "deep/x.gif"):
        write_png(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_a_folder_is_searched_deeply_and_other_extensions_are_counted(folder):
    inventory = take_inventory(str(folder), EXTENSIONS)
    assert names(inventory, folder) == ["a.JPG", "b.png", "deep/er/c.png"]
    assert (inventory.ignored, inventory.repeated) == (3, 0)


@pytest.mark.parametrize(
    "extensions, expected",
    [
        (("gif",), ["deep/x.gif"]),
        ((".PNG",), ["b.png", "deep/er/c.png"]),
        (("*",), ["a.JPG", "b.png", "deep/er/c.png", "deep/x.gif", "noext", "notes.txt"]),
    ],
    ids=["one", "with a dot and in capitals", "every file"],
)
def test_extensions_say_what_is_an_image(folder, extensions, expected):
    inventory = take_inventory(str(folder), extensions)
    assert names(inventory, folder) == expected
    assert inventory.ignored == 6 - len(expected)


@pytest.mark.parametrize("ending", ["", "/", "/.", "/deep/.."])
def test_one_folder_has_one_spelling(folder, ending):
    assert names(take_inventory(f"{folder}{ending}", ("gif",)), folder) == ["deep/x.gif"]


def test_paths_relative_to_here_and_file_urls_are_the_same_source(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    expected = take_inventory(str(folder), EXTENSIONS).images
    assert take_inventory("photos", EXTENSIONS).images == expected
    assert take_inventory(f"file://{folder}", EXTENSIONS).images == expected


def test_a_row_says_who_the_image_is_and_what_it_weighs(folder):
    images = take_inventory(str(folder / "b.png"), EXTENSIONS).images
    assert images.schema == INVENTORY
    row = images.to_pylist()[0]
    assert row["image_id"] == image_id(f"file://{folder}/b.png")
    assert row["size_bytes"] == (folder / "b.png").stat().st_size


def test_a_changed_file_has_another_etag(folder):
    def etag():
        return take_inventory(str(folder / "b.png"), EXTENSIONS).images["etag"][0].as_py()

    before = etag()
    assert etag() == before
    os.utime(folder / "b.png", (1, 1))
    assert etag() != before


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("*.png", ["b.png"]),
        ("**/*.png", ["b.png", "deep/er/c.png"]),
        ("?.*", ["a.JPG", "b.png"]),
        ("deep/*", ["deep/x.gif"]),
        ("[ab].png", ["b.png"]),
        ("notes*", ["notes.txt"]),
    ],
    ids=["star", "deep", "question mark", "not folders", "set", "any extension"],
)
def test_a_glob_takes_what_it_matches(folder, pattern, expected):
    assert names(take_inventory(f"{folder}/{pattern}", EXTENSIONS), folder) == expected


@pytest.mark.parametrize("pattern", ["", "/*/er/*.png", "/**/*.png"])
def test_a_folder_that_cannot_be_listed_is_not_empty(folder, monkeypatch, pattern):
    real = os.scandir

    def scandir(path="."):
        if str(path).endswith("/er"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match=r"Input/output error: '.*/deep/er'"):
        take_inventory(f"{folder}{pattern}", EXTENSIONS)


def test_a_folder_that_goes_away_meanwhile_holds_nothing(folder, monkeypatch):
    real = LocalFileSystem.ls

    def ls(fs, path, detail=False, **kwargs):
        if path.endswith("/er"):
            raise FileNotFoundError(path)
        return real(fs, path, detail, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    assert names(take_inventory(str(folder), EXTENSIONS), folder) == ["a.JPG", "b.png"]


def test_the_mark_of_a_folder_in_a_store_is_no_file():
    class Marked(MemoryFileSystem):
        def ls(self, path, detail=True, **kwargs):
            mark = {"name": f"{path}/", "type": "directory" if "deep" in path else "file"}
            return [mark, *super().ls(path, detail=True, **kwargs)]

    fs = Marked(skip_instance_cache=True)
    fs.store, fs.pseudo_dirs = {}, [""]
    fs.pipe({"/b/z.png": b"1", "/b/deep/y.png": b"1", "/b/a/x.png": b"1"})
    assert [info["name"] for info in walk(fs, "/b")] == ["/b/z.png", "/b/deep/y.png", "/b/a/x.png"]


def test_a_single_file_needs_no_extension(folder):
    assert names(take_inventory(f"{folder}/noext", EXTENSIONS), folder) == ["noext"]


@pytest.mark.parametrize("name", AWKWARD)
def test_a_file_of_any_name_is_listed_once_and_can_be_fetched(tmp_path, name):
    write_png(tmp_path / "in" / name)
    write_png(tmp_path / "in" / "axb.png")
    for source in (tmp_path / "in", tmp_path / "in" / name):
        inventory = take_inventory(str(source), EXTENSIONS)
        assert name in names(inventory, tmp_path / "in")
        fetched = FetchDecode(32, 64, SourceSettings())(inventory.images)
        assert set(fetched["status"].to_pylist()) == {LABELLED}
        assert len(fetched) == (2 if source.is_dir() else 1)


@pytest.mark.parametrize("name", ["a[b]", "a*", "x::y", "x::zip", "é #1", "list.txt"])
def test_a_folder_of_any_name_is_a_folder(tmp_path, name):
    write_png(tmp_path / name / "a.png")
    write_png(tmp_path / "ab" / "b.png")
    inventory = take_inventory(str(tmp_path / name), EXTENSIONS)
    assert names(inventory, tmp_path / name) == ["a.png"]


def test_a_name_that_is_not_text_is_passed_over(tmp_path, caplog):
    write_png(tmp_path / "good.png")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(b"x")
    inventory = take_inventory(str(tmp_path), EXTENSIONS)
    assert (names(inventory, tmp_path), inventory.ignored) == (["good.png"], 1)
    assert "not UTF-8" in caplog.text


def test_links_to_images_are_images_and_broken_links_are_ignored(folder, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    (links / "good.png").symlink_to(folder / "b.png")
    (links / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (links / "circle.png").symlink_to(links / "circle.png")
    inventory = take_inventory(str(links), EXTENSIONS)
    assert (names(inventory, links), inventory.ignored) == (["good.png"], 2)
    row = inventory.images.to_pylist()[0]
    assert row["size_bytes"] == (folder / "b.png").stat().st_size
    assert row == take_inventory(str(links / "good.png"), EXTENSIONS).images.to_pylist()[0]


def test_a_text_list_has_comments_and_repeats(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        "\ufeff# ours",
        f"{folder}/b.png",
        "",
        f"  file://{folder}/b.png  ",
        "photos/a.JPG",
        "s3://bucket/key with space.jpg",
    ]
    (tmp_path / "list.txt").write_text("\r\n".join(lines))
    inventory = take_inventory("list.txt", EXTENSIONS)
    assert inventory.images["uri"].to_pylist() == [
        f"file://{folder}/a.JPG",
        f"file://{folder}/b.png",
        "s3://bucket/key with space.jpg",
    ]
    assert (inventory.ignored, inventory.repeated) == (0, 1)


def test_a_list_takes_files_of_any_extension_unseen(tmp_path):
    (tmp_path / "list.TXT").write_text("/nowhere/x.dat\n")
    assert take_inventory(str(tmp_path / "list.TXT"), EXTENSIONS).images["uri"].to_pylist() == [
        "file:///nowhere/x.dat"
    ]


@pytest.mark.parametrize(
    "etags",
    [None, pa.array(["one", None]), pa.array(["one", None]).dictionary_encode()],
    ids=["no etag", "etag", "dictionary"],
)
def test_a_parquet_list_may_know_etags(tmp_path, etags):
    columns = {"uri": ["/x/b.png", "/x/a.png"], "caption": ["b", "a"]}
    table = pa.table(columns if etags is None else columns | {"etag": etags})
    pq.write_table(table, tmp_path / "list.parquet")
    images = take_inventory(str(tmp_path / "list.parquet"), EXTENSIONS).images
    assert images["uri"].to_pylist() == ["file:///x/a.png", "file:///x/b.png"]
    assert images["etag"].to_pylist() == [None, None if etags is None else "one"]


@pytest.mark.parametrize(
    "table, words",
    [
        (pa.table({"url": ["a"], "id": [1]}), ["no column `uri`", "url, id"]),
        (pa.table({"uri": ["/a.png", None]}), ["row 1", "None"]),
        (pa.table({"uri": [7]}), ["row 0", "7"]),
        (pa.table({"uri": ["/a.png", "ftp://h/b.png"]}), ["row 1", "'ftp'"]),
        (pa.table({"uri": ["/a.png"], "etag": [7]}), ["row 0", "etag is 7"]),
        (pa.table({"uri": pa.array([], pa.string())}), ["holds no images"]),
    ],
    ids=["no uri", "null", "number", "bad scheme", "etag is a number", "no rows"],
)
def test_a_wrong_parquet_list_is_refused(tmp_path, table, words):
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(SourceError) as caught:
        take_inventory(str(tmp_path / "list.parquet"), EXTENSIONS)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        ("/a.png\n# x\nftp://host/b.png\n", ["list.txt, line 3", "'ftp'"]),
        ("https://host/b.png\n", ["line 1", "'https'"]),
        ("s3://key:secret@bucket/b.png\n", ["line 1", "credentials"]),
        ("# nothing\n\n", ["holds no images"]),
        ("", ["holds no images"]),
        (b"/caf\xe9.png\n", ["not UTF-8"]),
        ("/a.png\ns3://[bucket/b.png\n", ["list.txt, line 2", "s3://[bucket/b.png is no URL"]),
    ],
    ids=["bad scheme", "http", "credentials", "comments only", "no bytes", "latin-1", "no URL"],
)
def test_a_wrong_text_list_is_refused_by_line(tmp_path, content, words):
    path = tmp_path / "list.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SourceError) as caught:
        take_inventory(str(path), EXTENSIONS)
    for word in words:
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)


WEB = ListRules(WebAccess(allow_private=False, timeout_s=1.0))


def test_a_parameter_that_tells_images_apart_makes_them_many(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("".join(f"https://host/get?key=photos/{n}.jpg\n" for n in range(3)))
    uris = take_inventory(str(path), EXTENSIONS, WEB).images["uri"].to_pylist()
    assert uris == [f"https://host/get?key=photos/{n}.jpg" for n in range(3)]


def test_an_image_that_is_signed_twice_is_one(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("https://host/a?token=s&sig=1&se=1\nhttps://host/a?token=s&sig=2&se=2\n")
    images = take_inventory(str(path), EXTENSIONS, WEB).images
    assert set(images["uri"].to_pylist()) == {"https://host/a"}


@pytest.mark.parametrize("suffix", ["", "&sig=1"])
@pytest.mark.parametrize("name", ["file_token", "auth"])
def test_entries_that_only_a_secret_tells_apart_are_refused_by_line(tmp_path, name, suffix):
    path = tmp_path / "list.txt"
    path.write_text("".join(f"https://host/a?{name}=box{n}{suffix}\n" for n in (1, 1, 2)))
    with pytest.raises(SourceError, match=f"line 3: it differs from line 1 only in {name}") as told:
        take_inventory(str(path), EXTENSIONS, WEB)
    assert "box" not in str(told.value)


@pytest.mark.parametrize(
    "source, words",
    [
        ("absent", ["absent", "does not exist"]),
        ("absent/*.png", ["holds no images"]),
        ("absent.txt", ["absent.txt", "does not exist"]),
        ("empty", ["empty holds no images"]),
        ("texts", ["holds no images", "2 files have other extensions"]),
        ("broken.parquet", ["cannot read", "broken.parquet"]),
        ("", ["empty path"]),
        ("  ", ["empty path"]),
        ("ftp://host/x", ["'ftp'", "s3"]),
        ("s3://key:secret@bucket/x", ["credentials"]),
        ("memory://nowhere/x", ["does not exist"]),
    ],
    ids=[
        "missing folder",
        "glob without match",
        "missing list",
        "empty folder",
        "no image in it",
        "not a parquet file",
        "empty",
        "blank",
        "unknown scheme",
        "credentials",
        "missing in another store",
    ],
)
def test_a_source_that_cannot_be_listed_is_refused(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("texts/a.txt", "texts/b.md", "broken.parquet"):
        (tmp_path / name).write_text("x")
    with pytest.raises(SourceError) as caught:
        take_inventory(source, EXTENSIONS)
    for word in words:
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.s3
def test_a_list_of_a_store_names_no_local_file_unless_it_is_trusted(s3_server, folder):
    fs = s3fs.S3FileSystem()
    fs.mkdir("lists")
    fs.pipe_file("lists/good.txt", b"s3://lists/a.png\n")
    fs.pipe_file("lists/bad.txt", f"s3://lists/a.png\n{folder}/b.png\n".encode())
    assert len(take_inventory("s3://lists/good.txt", EXTENSIONS).images) == 1
    with pytest.raises(SourceError, match=r"bad.txt, line 2: .*b.png .* trust_lists"):
        take_inventory("s3://lists/bad.txt", EXTENSIONS)
    trusted = take_inventory("s3://lists/bad.txt", EXTENSIONS, ListRules(trusted=True))
    assert len(trusted.images) == 2


@pytest.fixture
def photos_in_s3(s3_server):
    fs = s3fs.S3FileSystem()
    fs.makedirs("globs", exist_ok=True)
    for name in ("a.jpg", "b.png", "x1/", "x1/a.jpg", "x1/deep/a.jpg", "x2/b.jpg", "y/a.jpg"):
        fs.pipe_file(f"globs/photos/{name}", b"1")


@pytest.mark.s3
@pytest.mark.parametrize(
    "pattern, expected, listed",
    [
        ("photos/*.jpg", ["photos/a.jpg"], ["photos/"]),
        ("photos/*", ["photos/a.jpg", "photos/b.png"], ["photos/"]),
        ("photos/x*/a.jpg", ["photos/x1/a.jpg"], ["photos/", "photos/x1/", "photos/x2/"]),
        (
            "photos/x[1]/*/?.jpg",
            ["photos/x1/deep/a.jpg"],
            ["photos/", "photos/x1/", "photos/x1/deep/"],
        ),
        ("p*/*.png", ["photos/b.png"], ["", "photos/"]),
        ("photos/x*/**/a.jpg", ["photos/x1/a.jpg", "photos/x1/deep/a.jpg"], ["photos/"]),
        ("absent/*.jpg", [], ["absent/"]),
    ],
    ids=["one level", "any name", "of folders", "deep", "from the bucket", "all levels", "none"],
)
def test_a_glob_in_s3_is_read_page_by_page(photos_in_s3, monkeypatch, pattern, expected, listed):
    asked, pages = [], s3fs.S3FileSystem._iterdir

    def noting(fs, bucket, max_items=None, delimiter="/", prefix="", versions=False):
        if max_items is None:  # else it is asked whether there is a folder
            asked.append(prefix)
        return pages(fs, bucket, max_items, delimiter, prefix, versions)

    monkeypatch.setattr(s3fs.S3FileSystem, "_iterdir", noting)
    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    found = [info["name"] for info in _matching(fs, f"globs/{pattern}")]
    assert found == [f"globs/{name}" for name in expected] and asked == listed
    monkeypatch.setattr(fs, "ls", None)  # which holds a whole folder
    assert len(list(_matching(fs, f"globs/{pattern}"))) == len(expected)


def test_the_place_of_a_source_is_where_its_uris_begin(tmp_path, monkeypatch):
    photos = tmp_path / "photos" / "day [1]"
    photos.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    place = f"file://{tmp_path}/photos"
    for source in ("photos", "photos/", str(tmp_path / "photos"), "photos/*/a.jpg", "photos/*.png"):
        assert source_place(source) == place
    assert source_place("photos/day [1]") == f"{place}/day [1]"
    assert source_place("s3://bucket/a/") == "s3://bucket/a"
    assert source_place("https://example.org/a.jpg") == "https://example.org/a.jpg"
