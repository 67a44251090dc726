"""What a vocabulary is for CLIP, kept beside the embeddings so that labels can be explained.

Dimension key: K class names, D embedding.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from pipeline.files import read_bytes, write_bytes
from pipeline.parts import EMBEDDINGS_FOLDER


@dataclass(frozen=True, eq=False)
class Texts:
    """What the vocabulary is for CLIP: unit text vectors per head, and CLIP's own scale."""

    query_KD: NDArray[np.float32]
    region_KD: NDArray[np.float32]
    logit_scale: float


def texts_path(fingerprint: str) -> str:
    """Return where the text vectors of a label fingerprint are, relative to the dataset."""
    return f"{EMBEDDINGS_FOLDER}/texts-{fingerprint[:24]}.npz"


def write_texts(dataset: str, fingerprint: str, texts: Texts) -> None:
    """Keep the text vectors of a run; equal fingerprints have equal ones."""
    buffer = BytesIO()
    scale = np.array(texts.logit_scale)
    np.savez(buffer, query=texts.query_KD, region=texts.region_KD, logit_scale=scale)
    write_bytes(dataset, texts_path(fingerprint), buffer.getvalue())


def read_texts(dataset: str, fingerprint: str) -> Texts | None:
    """Return the text vectors of a label fingerprint, None where none were kept."""
    try:
        data = read_bytes(dataset, texts_path(fingerprint))
    except FileNotFoundError:
        return None
    with np.load(BytesIO(data), allow_pickle=False) as found:
        return Texts(found["query"], found["region"], float(found["logit_scale"]))
