"""Identity of weights: the hash that goes into fingerprints and manifests."""

import hashlib
from pathlib import Path

from schemas.errors import ModelError


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of one file, or of all files below a directory with their names.

    Raises ModelError when `path` does not exist.
    """
    if not path.exists():
        raise ModelError(f"there are no weights at {path}")
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
