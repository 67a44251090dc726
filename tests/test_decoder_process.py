"""A file may kill its decoder; it may not kill, stop or fool anything else."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.decode import BadImage, DecodeSettings, Picture, decode_resized
from pipeline.decoder_process import Decoder
from pipeline.stages.fetch import FetchDecode
from pipeline.stages.rows import Row
from schemas.annotate_config import SourceSettings
from schemas.annotation import INVENTORY, image_id, table_from_rows
from schemas.errors import SegmillError

SETTINGS = DecodeSettings(
    short_edge=32, long_edge=64, max_pixels=10**8, max_frames=10, max_seconds=20.0, max_mb=512,
    jpeg_draft=False,
)  # fmt: skip
POISON = ("-P", "-m", "tests.poison_decoder")


def poison(deed: str) -> bytes:
    return b"POISON " + deed.encode()


def png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def flat_png(side: int) -> bytes:
    """Return a file of few bytes and many pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (9, 8, 7)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(replace(SETTINGS, max_seconds=0.15), POISON)
    yield decoder
    decoder.close()


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (1, 1), (3, 400)], ids=str)
def test_the_process_gives_the_very_pixels(size: tuple[int, int]) -> None:
    decoder = Decoder(SETTINGS)
    expected, found = decode_resized(png(*size), SETTINGS), decoder(png(*size))
    decoder.close()
    np.testing.assert_array_equal(found.pixels_HW3, expected.pixels_HW3)
    assert found.origin == expected.origin
    assert (found.origin.height, found.origin.width) == size


def test_a_picture_stays_when_the_next_one_is_drawn(decoder: Decoder) -> None:
    first = decoder(png(50, 90))
    kept = first.pixels_HW3.copy()
    decoder(flat_png(100))
    np.testing.assert_array_equal(first.pixels_HW3, kept)


def test_a_verdict_comes_through(decoder: Decoder) -> None:
    with pytest.raises(BadImage) as caught:
        decoder(b"no image")
    assert (caught.value.code, decoder.deaths) == ("not_an_image", 0)


@pytest.mark.parametrize(
    "deed, code, words",
    [
        ("segfault", "decoder_crashed", "SIGSEGV"),
        ("abort", "decoder_crashed", "SIGABRT"),
        ("exit", "decoder_crashed", "exit code 3"),
        ("spin", "too_slow", "over 0.15 s"),
        ("wait", "too_slow", "over 0.15 s"),
        ("kill", "out_of_memory", "512 MiB"),  # what the kernel does where memory runs out
    ],
)
def test_a_file_that_kills_its_decoder_is_given_up_after_two_tries(
    decoder: Decoder, deed: str, code: str, words: str
) -> None:
    with pytest.raises(BadImage) as caught:
        decoder(poison(deed))
    assert caught.value.code == code
    assert words in str(caught.value)
    assert decoder.deaths == 2
    assert decoder(png(5, 7)).origin.height == 5


def test_a_decoder_that_eats_memory_stops_at_the_limit() -> None:
    decoder = Decoder(SETTINGS, POISON)
    with pytest.raises(BadImage) as caught:
        decoder(poison("eat"))
    assert caught.value.code == "out_of_memory"
    assert decoder(png(5, 7)).origin.height == 5
    decoder.close()


def test_what_an_earlier_file_left_behind_costs_no_later_one(decoder: Decoder) -> None:
    decoder(poison("nothing"))
    decoder(poison("when worn"))  # crashes a process that has decoded before
    assert decoder.deaths == 1


def test_files_that_are_decoded_together_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(1)
    # Enough for several groups, one of them of a single file that is too large for company.
    files = [png(*size) for size in rng.integers(1, 90, (27, 2)).tolist()]
    files[5:5] = [b"no image", b""]
    files.insert(9, png(700, 700))
    assert len(files[9]) > 2**20
    together, alone = Decoder(SETTINGS), Decoder(SETTINGS)
    found = [*together.each(files)]
    assert len(found) == len(files)
    for file, one in zip(files, found, strict=True):
        try:
            expected = alone(file)
        except BadImage as bad:
            assert isinstance(one, BadImage)
            assert (one.code, str(one)) == (bad.code, str(bad))
        else:
            assert isinstance(one, Picture)
            np.testing.assert_array_equal(one.pixels_HW3, expected.pixels_HW3)
            assert one.origin == expected.origin
    assert together.deaths == 0
    together.close()
    alone.close()


def test_pictures_too_large_for_the_memory_of_several_come_one_at_a_time() -> None:
    decoder = Decoder(replace(SETTINGS, short_edge=1000, long_edge=1000))
    found = [*decoder.each([png(40, 40), png(30, 30)])]
    sizes = [one.pixels_HW3.shape for one in found if isinstance(one, Picture)]
    assert sizes == [(1000, 1000, 3)] * 2  # 3 MB each, of 4
    decoder.close()


@pytest.mark.parametrize(
    "deed, code",
    [("segfault", "decoder_crashed"), ("spin", "too_slow"), ("kill", "out_of_memory")],
)
def test_a_file_that_kills_its_decoder_costs_no_file_that_travels_with_it(
    decoder: Decoder, deed: str, code: str
) -> None:
    good = [png(5, 7), png(7, 5), png(9, 9)]
    first, bad, *rest = decoder.each([good[0], poison(deed), *good[1:]])
    assert isinstance(bad, BadImage) and bad.code == code
    for file, one in zip(good, [first, *rest], strict=True):
        assert isinstance(one, Picture)
        expected = decode_resized(file, SETTINGS)
        np.testing.assert_array_equal(one.pixels_HW3, expected.pixels_HW3)
    assert decoder.deaths == 3  # once in company, twice alone


def test_memory_that_others_took_is_no_files_fault() -> None:
    decoder = Decoder(SETTINGS, POISON)
    found = [*decoder.each([poison("hoard"), flat_png(3000), png(5, 7)])]
    assert [isinstance(one, Picture) for one in found] == [True] * 3
    assert decoder.deaths == 0
    decoder.close()


def test_the_memory_of_a_picture_is_used_for_the_next_one() -> None:
    decoder = Decoder(replace(SETTINGS, short_edge=640, long_edge=1280))
    photo = png(600, 800)  # its pixels, resized, and what lies between take 1,500 pages and more
    for _ in range(3):
        decoder(photo)
    before = page_faults(decoder)
    for _ in range(5):
        decoder(photo)
    assert page_faults(decoder) - before < 5 * 200
    decoder.close()


def page_faults(decoder: Decoder) -> int:
    """Return how often the child has touched memory that was new to it."""
    assert decoder._child is not None
    process = decoder._child._process.pid
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[7])


def test_the_decoder_sees_no_credentials(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("HOME", "/planted-home")
    with pytest.raises(BadImage) as caught:
        decoder(poison("environment"))
    assert "PYTHONPATH" in str(caught.value)
    assert "planted" not in str(caught.value)


def test_the_decoder_writes_no_file(decoder: Decoder) -> None:
    path = Path("/tmp/segmill-poison")
    with pytest.raises(BadImage):
        decoder(poison("write"))
    size = path.stat().st_size if path.exists() else 0
    path.unlink(missing_ok=True)
    assert size == 0


@pytest.mark.parametrize(
    "reply",
    [
        'b"no json"',
        'b"{}"',
        'b"[]"',
        'b"[[]]"',
        'b"[1]"',
        "b'[' * 60_000",
        'b\'[{"size": [10000, 10000], "frames": 1, "exif_orientation": 1}]\'',
        "b'[{\"size\": [2, 2]}]'",
        'b\'[{"size": [-1, 1], "height": 1, "width": 1, "frames": 1, "exif_orientation": 1}]\'',
        'b\'[{"size": [2, 2], "height": "x", "width": 1, "frames": 1, "exif_orientation": 1}]\'',
        "b'[{\"size\": [Infinity, 2]}]'",
        "b'x' * 10**6",
    ],
    ids=[
        "no json",
        "no list",
        "no answer",
        "no object",
        "a number",
        "too deep",
        "too many pixels",
        "keys are missing",
        "less than no pixels",
        "no number",
        "infinite",
        "too long",
    ],
)
def test_a_decoder_that_was_taken_over_cannot_fool_its_parent(reply: str) -> None:
    script = (
        "import socket, sys; from pipeline.decoder_child import receive, send;"
        "channel = socket.socket(fileno=int(sys.argv[1])); send(channel, b'ready');"
        f"receive(channel, 10**9); send(channel, {reply}); receive(channel, 10**9)"
    )
    decoder = Decoder(SETTINGS, ("-c", script))
    with pytest.raises(BadImage) as caught:
        decoder(png(2, 2))
    assert caught.value.code == "decoder_crashed"
    assert decoder.deaths == 2


def test_a_decoder_that_does_not_start_is_no_images_fault() -> None:
    with pytest.raises(SegmillError, match=r"does not start: .*no such thing"):
        Decoder(SETTINGS, ("-c", "raise OSError('no such thing')"))(png(2, 2))


def test_the_decoder_ends_with_the_process_that_started_it() -> None:
    script = (
        "import os, tests.test_decoder_process as t; from pipeline.decoder_process import Decoder;"
        "decoder = Decoder(t.SETTINGS); decoder(t.png(2, 2));"
        "print(decoder._child._process.pid, flush=True); os._exit(1)"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    child = Path("/proc", printed.stdout.strip() or printed.stderr)
    deadline = time.monotonic() + 20
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(child)


def _runs(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_decoder_process_stays_light() -> None:
    script = "import pipeline.decoder_child, sys; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    loaded = set(printed.stdout.split())
    assert "PIL.Image" in loaded
    assert loaded.isdisjoint({"torch", "ray", "pyarrow", "fsspec", "pydantic", "scipy"})


def decode_rows(folder: Path, **settings: object) -> dict[str, Row]:
    uris = [f"file://{path}" for path in sorted(folder.iterdir())]
    images = [{"image_id": image_id(uri), "uri": uri} for uri in uris]
    stage = FetchDecode(32, 64, SourceSettings(**settings))  # type: ignore[arg-type]
    rows = stage(table_from_rows(images, INVENTORY)).to_pylist()
    return {os.path.basename(row["uri"]): row for row in rows}


@pytest.mark.parametrize(
    "settings, code",
    [
        ({"max_decode_mb": 64}, "out_of_memory"),
        ({"max_decode_seconds": 0.05}, "too_slow"),
        ({"max_image_pixels": 10**6}, "too_many_pixels"),
        ({}, None),
    ],
    ids=["memory", "time", "pixels", "default"],
)
def test_an_image_over_a_limit_is_quarantined_and_its_neighbours_are_not(
    tmp_path: Path, settings: dict[str, object], code: str | None
) -> None:
    (tmp_path / "a.png").write_bytes(png(40, 40))
    (tmp_path / "bomb.png").write_bytes(flat_png(5000))
    (tmp_path / "c.png").write_bytes(png(40, 40))
    rows = decode_rows(tmp_path, **settings)
    assert rows["a.png"]["error"] is None is rows["c.png"]["error"]
    error = rows["bomb.png"]["error"]
    assert (error and (error["stage"], error["code"])) == (code and ("decode", code))
