"""Identity of weights: the hash that goes into fingerprints and manifests."""

import hashlib
import zipfile
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from schemas.errors import ModelError

TORCH_SUFFIXES: Final = (".pth", ".pt", ".bin")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of one file, or of all files below a directory with their names.

    Raises ModelError when `path` does not exist, or a file of weights ends early: what cannot be
    loaded is told before a run starts, not by its workers.
    """
    if not path.exists():
        raise ModelError(f"there are no weights at {path}")
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        _refuse_truncated(file)
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _refuse_truncated(file: Path) -> None:
    """Read what tells the length: the header of safetensors, the table of a zip of PyTorch's.

    Older files of PyTorch are one pickle, which shows that it ends early only when it is loaded.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy"):
                pass
        elif file.suffix in TORCH_SUFFIXES and _begins_as_zip(file):
            zipfile.ZipFile(file).close()
    except (SafetensorError, zipfile.BadZipFile) as error:
        raise ModelError(f"{file} is truncated or no file of weights: {error}") from None


def _begins_as_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"
