"""Which CLIP is meant: told early and clearly when it cannot be loaded."""

import os
import pickle
from contextlib import suppress

import fsspec
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from pipeline.models.clip import Clip, ClipSource
from schemas.errors import ModelError
from tests.helpers import TINY_CLIP, save_tiny_clip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def tiny_arch(monkeypatch):
    """Return the name of a small architecture, known to open_clip during one test."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "segmill-tiny", TINY_CLIP)
    return "segmill-tiny"


@pytest.mark.parametrize(
    "name, weights, words",
    [
        ("ViT-B-61", "openai", ["'ViT-B-61'", "ViT-B-16", "hf-hub:", "local-dir:"]),
        ("vit-b-32", "openai", ["'vit-b-32'", "ViT-B-32"]),
        ("", None, ["no architecture"]),
        ("ViT-B-16", None, ["needs clip_weights"]),
        ("ViT-B-16", "opnai", ["'opnai'", "openai", ".safetensors"]),
        ("ViT-B-16", "absent.safetensors", ["'absent.safetensors'", "no such file"]),
        ("ViT-B-16", "absent.pt", ["'absent.pt'", "no such file"]),
        ("local-dir:absent", None, ["absent/open_clip_config.json"]),
        ("local-dir:", None, ["open_clip_config.json"]),
        ("local-dir:absent", "openai", ["absent/open_clip_config.json"]),
        ("hf-hub:org/name", "openai", ["brings its own weights"]),
    ],
    ids=[
        "misspelt architecture",
        "wrong case",
        "empty",
        "no weights",
        "unknown tag",
        "missing safetensors",
        "missing pickle",
        "missing folder",
        "no folder",
        "missing folder with weights",
        "hub with weights",
    ],
)
def test_a_clip_that_cannot_be_meant_is_refused(name, weights, words):
    for attempt in (ClipSource(name, weights).check, ClipSource(name, weights).describe):
        with pytest.raises(ModelError) as caught:
            attempt()
        for word in words:
            assert word in str(caught.value)


def test_a_local_folder_brings_its_own_weights(tiny):
    with pytest.raises(ModelError, match="brings its own weights; clip_weights must be absent"):
        ClipSource(tiny, "openai").check()


@pytest.mark.parametrize(
    "config", ["{}", "{", '{"model_cfg": {}}', "[]"], ids=["empty", "cut", "no size", "a list"]
)
def test_a_folder_with_a_broken_config_is_refused(tmp_path, config):
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(ModelError, match="cannot read the config of clip 'local-dir:"):
        ClipSource(f"local-dir:{tmp_path}").describe()


def test_a_card_knows_dimension_and_hash_of_the_folder(tiny, tmp_path):
    card = ClipSource(tiny).describe()
    assert card.embedding_dim == 16
    same = ClipSource(save_tiny_clip(tmp_path / "same")).describe()
    other = ClipSource(save_tiny_clip(tmp_path / "other", seed=1)).describe()
    assert card.weights_sha256 == same.weights_sha256 != other.weights_sha256


def test_a_tag_is_known_without_a_hash():
    card = ClipSource("ViT-B-16", "openai").describe()
    assert (card.embedding_dim, card.weights_sha256) == (512, None)


def test_embedded_is_a_folder_of_ours():
    assert ClipSource.of("embedded", None).name.startswith("local-dir:")
    assert ClipSource.of("ViT-B-16", "openai") == ClipSource("ViT-B-16", "openai")


def test_text_and_image_vectors_have_unit_length_and_do_not_depend_on_the_batch(tiny):
    clip = Clip.load(ClipSource(tiny))
    assert clip.side == 32
    text_ND = clip.encode_text(["a cat", "a dog", "a cat"])
    np.testing.assert_allclose(np.linalg.norm(text_ND, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(text_ND[0], text_ND[2])
    assert np.abs(text_ND[0] - text_ND[1]).max() > 1e-3
    torch.manual_seed(0)
    crops_N3SS = torch.randn(5, 3, 32, 32)
    whole_ND = clip.encode_crops(crops_N3SS, batch=5)
    torch.testing.assert_close(whole_ND.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(clip.encode_crops(crops_N3SS, batch=2), whole_ND)
    assert len(clip.encode_crops(crops_N3SS[:0], batch=2)) == 0


def test_more_prompts_than_fit_a_pass_keep_their_order(tiny):
    clip = Clip.load(ClipSource(tiny))
    prompts = [f"number {index}" for index in range(300)]
    vectors_ND = clip.encode_text(prompts)
    assert len(vectors_ND) == 300
    ends_ND = clip.encode_text([prompts[0], prompts[-1]])
    np.testing.assert_allclose(vectors_ND[[0, 299]], ends_ND, atol=1e-6)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_architecture_loads_a_file_of_weights(tiny, tiny_arch, tmp_path, suffix):
    directory = tiny.removeprefix("local-dir:")
    path = f"{directory}/open_clip_model.safetensors"
    if suffix == ".pt":
        weights, path = load_file(path), tmp_path / "weights.pt"
        torch.save(weights, path)
    source = ClipSource(tiny_arch, str(path))
    assert source.describe().weights_sha256
    expected_ND = Clip.load(ClipSource(tiny)).encode_text(["a cat"])
    np.testing.assert_allclose(Clip.load(source).encode_text(["a cat"]), expected_ND, atol=1e-6)


def test_a_file_of_weights_may_be_in_a_store(tiny, tiny_arch, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGMILL_WEIGHTS_CACHE", str(tmp_path))
    path = f"{tiny.removeprefix('local-dir:')}/open_clip_model.safetensors"
    fsspec.filesystem("memory").put_file(path, "/weights/clip.safetensors")
    source = ClipSource(tiny_arch, "memory://weights/clip.safetensors")
    here = source.on_this_machine()
    assert here.describe() == ClipSource(tiny_arch, path).describe()
    vectors_ND = [Clip.load(one).encode_text(["a cat"]) for one in (source, ClipSource(tiny))]
    np.testing.assert_allclose(*vectors_ND, atol=1e-6)


def attack(marker):
    """Return an object whose unpickling makes the folder `marker`."""

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    return Attack()


@pytest.mark.parametrize("in_folder", [False, True], ids=["file", "local folder"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(tiny_arch, tmp_path, in_folder, writer):
    marker, folder = tmp_path / "owned", tmp_path / "clip"
    save_tiny_clip(folder)
    (folder / "open_clip_model.safetensors").unlink()
    path = folder / "open_clip_pytorch_model.bin"
    if writer == "torch":
        torch.save({"state_dict": attack(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(attack(marker)))
    source = ClipSource(f"local-dir:{folder}") if in_folder else ClipSource(tiny_arch, str(path))
    with pytest.raises(ModelError, match="cannot load clip"):
        Clip.load(source)
    assert not marker.exists()
    with suppress(RuntimeError):  # a bare pickle is no checkpoint, which torch finds too late
        torch.load(path, weights_only=False)
    assert marker.exists()  # the attack works where it is let


def test_weights_of_another_architecture_are_refused(tiny_arch, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"visual.proj": torch.zeros(3, 3)}, path)
    with pytest.raises(ModelError, match=f"cannot load clip '{tiny_arch}'"):
        Clip.load(ClipSource(tiny_arch, str(path)))


def test_a_folder_without_weights_is_refused(tmp_path):
    name = save_tiny_clip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load clip 'local-dir:"):
        Clip.load(ClipSource(name))
