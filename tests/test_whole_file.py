"""Files that take their place once they are complete: regular ones, links, pipes."""

import os
import threading
from pathlib import Path

import pytest

from pipeline.whole_file import refuse_unwritable, whole_file
from schemas.errors import OutputError


def write(path: Path, text: str) -> None:
    refuse_unwritable(path)
    with whole_file(path) as file:
        file.write(text)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "page.html"
    write(path, "first")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write("sec")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(OutputError, match="it is a directory"):
        write(tmp_path, "text")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_one(tmp_path: Path, is_there: bool) -> None:
    target, link = tmp_path / "store" / "page.html", tmp_path / "page.html"
    if is_there:
        write(target, "old")
    link.symlink_to(Path("store") / "page.html")
    write(link, "new")
    assert link.is_symlink() and not target.is_symlink()
    assert (target.read_text(), list(target.parent.iterdir())) == ("new", [target])


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    (tmp_path / "stdout").symlink_to(pipe)
    for path in (pipe, tmp_path / "stdout"):
        reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
        reader.start()
        write(path, "text")
        reader.join(10)
    assert (got, pipe.is_fifo()) == (["text"] * 2, True)
