"""Weights run no code: every way in refuses a pickle that would; CLIP's are in test_clip_source."""

import ast
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from jobs.weights import convert, inspect
from pipeline.models.checkpoint_file import read_weights
from pipeline.models.precomputed import read_masks
from pipeline.models.pretrained import find_checkpoint, load_config, load_model
from schemas.errors import ModelError
from schemas.weights_config import WeightsConvertConfig, WeightsInspectConfig
from tests.test_clip_source import attack

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("holder", [None, "model", "optimizer"])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_an_authors_checkpoint_that_would_run_code_is_refused(tmp_path, suffix, holder, is_zip):
    marker, path = tmp_path / "owned", tmp_path / f"weights{suffix}"
    content = {"weight": torch.zeros(2), "attack": attack(marker)}
    content = content if holder is None else {"model": {}, holder: content}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    for use in (
        lambda: read_weights(path),
        lambda: convert(WeightsConvertConfig(checkpoint=path, output=tmp_path / "out")),
        lambda: inspect(WeightsInspectConfig(weights=path)),
    ):
        with pytest.raises(ModelError, match="refused because loading it runs code"):
            use()
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the attack works where it is let


@pytest.fixture
def eomt(tmp_path):
    """Return a function that writes a checkpoint of Hugging Face whose weights are a pickle."""

    def write(marker):
        folder = tmp_path / "eomt"
        config = EomtConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
            num_blocks=1, num_queries=4, num_upscale_blocks=1,
        )  # fmt: skip
        config.save_pretrained(folder)
        torch.save({"query.weight": attack(marker)}, folder / "pytorch_model.bin")
        return folder

    return write


def test_a_pickle_of_hugging_face_is_not_even_opened(eomt, tmp_path):
    marker = tmp_path / "owned"
    checkpoint = find_checkpoint(str(eomt(marker)), "transformers")
    with pytest.raises(ModelError, match=r"cannot read the weights of .*safetensors"):
        load_model(checkpoint, EomtForUniversalSegmentation, "cpu")
    assert not marker.exists()


def test_code_beside_a_checkpoint_is_not_run(eomt, tmp_path):
    marker = tmp_path / "owned"
    folder = eomt(marker)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load_config(find_checkpoint(str(folder), "transformers"), "transformers", ["eomt"])
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_precomputed_masks_that_would_run_code_are_refused(tmp_path, suffix):
    marker, path = tmp_path / "owned", tmp_path / "a.npy"
    np.save(path, np.array([attack(marker)], dtype=object), allow_pickle=True)
    if suffix == ".npz":
        packed = tmp_path / "a.npz"
        with zipfile.ZipFile(packed, "w") as archive:
            archive.write(path, "masks.npy")
        path = packed
    with pytest.raises(ValueError, match="cannot be read"):
        read_masks(path)
    assert not marker.exists()


# What loads pickles, unless told not to -> the argument that tells.
_LOADERS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "pd.read_pickle": None,
    "torch.jit.load": None,
    "torch.hub.load": None,
    "pickle.load": None,
    "pickle.loads": None,
    "joblib.load": None,
}


def unsafe_loads(source: str) -> list[str]:
    """Return the calls in Python source that would load a pickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if name in _LOADERS:
            given = {key.arg: ast.unparse(key.value) for key in node.keywords}
            wanted = _LOADERS[name]
            if wanted is None or given.get(wanted[0]) != repr(wanted[1]):
                found.append(ast.unparse(node))
    return found


def test_no_line_of_ours_loads_a_pickle():
    sources = [
        path for name in ("schemas", "pipeline", "jobs") for path in (ROOT / name).rglob("*.py")
    ]
    found = {path.name: unsafe_loads(path.read_text()) for path in sources}
    assert len(sources) > 50
    assert {name: calls for name, calls in found.items() if calls} == {}
    assert unsafe_loads("torch.load(x)\nnp.load(x, allow_pickle=True)\npickle.loads(x)") != []
    assert unsafe_loads("torch.load(x, weights_only=True)") == []
