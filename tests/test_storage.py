"""URLs to file systems; no secret reaches a message."""

import os

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage import (
    credentials,
    describe,
    full_uri,
    hide_secrets,
    join_signature,
    open_store,
    split_signature,
    store_errors,
    trust,
)
from pipeline.web import WebAccess
from schemas.errors import OutputError, PublicationError, SourceError


@pytest.mark.parametrize(
    "url, shown",
    [
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("s3://key@bucket/x", "s3://bucket/x"),
        ("https://h/x.png?X-Amz-Signature=secret", "https://h/x.png"),
        ("az://u:p@h/x?sig=secret#part", "az://h/x#part"),
        ("s3://bucket/a@b:c.png", "s3://bucket/a@b:c.png"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("/a folder/é#1.png", "/a folder/é#1.png"),
        ("a::b", "a::b"),
        ("", ""),
        (
            "refused: 'https://me:pw@host/a?X-Amz-Signature=1&x=2' (403), see s3://k:s@b/c",
            "refused: 'https://host/a' (403), see s3://b/c",
        ),
        ("file:///what?.png", "file:///what?.png"),
    ],
    ids=[
        "user and password",
        "user",
        "signature",
        "both",
        "at sign in a key",
        "nothing to hide",
        "path",
        "chain",
        "empty",
        "inside a message",
        "question mark in a name",
    ],
)
def test_secrets_are_hidden(url, shown):
    assert hide_secrets(url) == shown


@pytest.mark.parametrize(
    "url, kind, path",
    [
        ("/x/y", LocalFileSystem, "/x/y"),
        ("/x/y/", LocalFileSystem, "/x/y"),
        ("file:///x/y", LocalFileSystem, "/x/y"),
        ("/x/a::zip", LocalFileSystem, "/x/a::zip"),
        ("/x/user@host", LocalFileSystem, "/x/user@host"),
        ("memory://x/y", MemoryFileSystem, "/x/y"),
    ],
    ids=["path", "trailing slash", "file url", "double colon", "at sign", "memory"],
)
def test_a_url_opens_its_store(url, kind, path):
    fs, found = open_store(url, OutputError)
    assert isinstance(fs, kind)
    assert found == path
    assert open_store(full_uri(fs, found), OutputError)[1] == path


SECRETS = [
    "token", "file_token", "X-Amz-Signature", "x-goog-date", "sig", "password", "passwd", "pwd",
    "auth", "api_key", "AWSAccessKeyId", "client_secret", "Credential",
]  # fmt: skip
BESIDE = ["Expires", "Policy", "Key-Pair-Id", "key", "se", "sp", "sv", "GoogleAccessId"]


@pytest.mark.parametrize(
    "query, kept, signature",
    [
        *((f"id=1&{name}=planted", "id=1", f"{name}=planted") for name in SECRETS),
        *((f"{name}=planted&sig=1", "", f"{name}=planted&sig=1") for name in BESIDE),
        *((f"{name}=a/1.jpg", f"{name}=a/1.jpg", None) for name in BESIDE),
        ("author=me&page=1", "author=me&page=1", None),
    ],
)
def test_what_signs_a_url_is_split_from_it_and_hidden(query, kept, signature):
    found, taken = split_signature(f"https://host/a?{query}")
    assert found == "https://host/a" + (kept and f"?{kept}")
    assert taken == signature
    assert "planted" not in hide_secrets(f"https://host/a?{query}")


def test_a_relative_path_starts_here_and_a_tilde_at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_store("a/../b", OutputError)[1] == str(tmp_path / "b")
    assert open_store("~/b", OutputError)[1] == str(tmp_path / "home" / "b")


@pytest.mark.parametrize(
    "url, words",
    [
        ("ftp://user:secret@host/x", ["scheme 'ftp'", "ftp://host/x", "s3"]),
        ("https://host/x?token=secret", ["scheme 'https'"]),
        ("s3://lab[x/labels", ["s3://lab[x/labels is no URL", "IPv6"]),
        ("s3://key:secret@bucket/x", ["s3://bucket/x", "credentials"]),
        ("", ["empty path"]),
        (" ", ["empty path"]),
    ],
    ids=["unknown scheme", "http", "no URL", "credentials", "empty", "blank"],
)
@pytest.mark.parametrize("kind", [SourceError, OutputError])
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(url, words, kind):
    with pytest.raises(kind) as caught:
        open_store(url, kind)
    for word in words:
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "cause, line",
    [
        (FileNotFoundError(2, "No such file", "/x"), "it does not exist"),
        (PermissionError("Forbidden\nmore"), "access is denied (Forbidden)"),
        (NotADirectoryError("x"), "a part of the path is a file, not a directory"),
        (ConnectionError("refused"), "the endpoint does not answer (refused)"),
        (ValueError("odd\nmore"), "ValueError: odd"),
        (ValueError(), "ValueError: ValueError"),
        (OSError("https://h/x?X-Amz-Signature=secret"), "OSError: https://h/x"),
    ],
    ids=["missing", "denied", "file in the path", "no answer", "other", "silent", "signed url"],
)
def test_a_stores_trouble_is_told_in_one_line(cause, line):
    assert describe(cause) == line


def test_trouble_inside_the_block_becomes_an_error_of_the_asked_kind():
    with (
        pytest.raises(OutputError, match="cannot write to s3://bucket/x: KeyError: 'a'"),
        store_errors("write to", "s3://k:secret@bucket/x", OutputError),
    ):
        raise KeyError("a")


@pytest.mark.parametrize("error", [SourceError("mine"), PublicationError("mine")], ids=repr)
def test_an_error_of_our_own_passes_unchanged(error):
    with pytest.raises(type(error), match=r"^mine$"), store_errors("read", "x", OutputError):
        raise error


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OutputError, match="a part of the path is a file"),
        store_errors("write to", "x", OutputError),
    ):
        os.makedirs(tmp_path / "file" / "x")


@pytest.mark.parametrize(
    "url, level",
    [("/x", 2), ("file:///x", 2), ("memory://x", 2), ("s3://b/x", 1), ("https://h/x", 0)],
)
def test_this_machine_is_trusted_more_than_a_bucket_and_that_more_than_the_web(url, level):
    fs, _ = open_store(url, SourceError, WebAccess(False, 5))
    assert trust(fs) == level


@pytest.mark.parametrize("query", ["a=1&sig=x&se=2", "sig=x&se=2", "a=1", ""])
def test_a_signature_is_joined_to_its_url_again(query):
    url = f"https://host/a?{query}".removesuffix("?")
    assert join_signature(*split_signature(url)) == url


def test_credentials_are_what_of_a_signature_stays_at_the_next_signing():
    assert credentials("token=a&X-Amz-Date=1&sig=x&password=b") == "token=a&password=b"
    assert credentials("X-Amz-Signature=x") == credentials(None) == ""
