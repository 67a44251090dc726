"""The hash by which weights are known."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from pipeline.models.weights import sha256_of
from schemas.errors import ModelError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "deep" / "weights").write_bytes(b"123")
    return tmp_path


def test_a_file_has_one_hash_wherever_it_lies(folder):
    (folder / "copy").write_bytes(b"123")
    assert sha256_of(folder / "copy") == sha256_of(folder / "deep" / "weights")
    once = hashlib.sha256(b"123").digest()
    assert sha256_of(folder / "copy") == hashlib.sha256(once).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "deep" / "weights").write_bytes(b"124"),
        lambda folder: (folder / "config.json").rename(folder / "settings.json"),
        lambda folder: (folder / "more").write_bytes(b""),
    ],
    ids=["other bytes", "other name", "one more file"],
)
def test_a_folder_has_another_hash_when_anything_in_it_changes(folder, change):
    before = sha256_of(folder)
    assert sha256_of(folder) == before
    change(folder)
    assert sha256_of(folder) != before


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"no weights at .*absent"):
        sha256_of(tmp_path / "absent")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("cut", [1, 100, 4000])
def test_a_truncated_file_has_no_hash(tmp_path, suffix, cut):
    file = tmp_path / f"model{suffix}"
    weights = {"a": torch.rand(1000), "b": torch.rand(500)}
    save = save_file if suffix == ".safetensors" else torch.save
    save(weights, file)
    assert sha256_of(file)
    file.write_bytes(file.read_bytes()[:-cut])
    for path in (file, tmp_path):
        with pytest.raises(ModelError, match=rf"model\{suffix} is truncated or no file of weights"):
            sha256_of(path)


def test_an_old_pickle_of_weights_has_a_hash(tmp_path):
    torch.save({"a": torch.rand(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert sha256_of(tmp_path / "a.pt")
