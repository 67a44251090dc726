"""Labels that people drew in the place of a model's, and the rows that they become.

They are kept apart from the rows, by class name, and every version names them: a row made of one is
made again where classes were added or stand in another order. Pixels of a class that the vocabulary
no longer has carry no label, and get it back with the class.

Dimension key: H W pixels.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.fingerprints import Fingerprints
from pipeline.parts import read_table
from pipeline.planner import Uncorrected
from pipeline.segments import IGNORE, decode_mask, encode_segments
from schemas.annotation import ANNOTATED, CORRECTIONS, HUMAN, LABELLED, table_from_rows
from schemas.manifest import StoredFile

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Corrections:
    """A table of CORRECTIONS, one row an image."""

    table: pa.Table

    @classmethod
    def read(cls, dataset: str, files: Sequence[StoredFile]) -> "Corrections":
        """Read the corrections of a version; of one image the last one counts."""
        tables = [read_table(dataset, file.path, CORRECTIONS) for file in files]
        table = pa.concat_tables([*tables[::-1], CORRECTIONS.empty_table()])
        ids = table["image_id"].combine_chunks()
        return cls(table.take(pc.index_in(pc.unique(ids), ids)))

    def keys(self, names: Sequence[str]) -> pa.Table:
        """Return image_id, etag, bytes and the fingerprint of the row under these class names."""
        prints = [
            Fingerprints.of_correction(one, names) for one in self.table["sha256"].to_pylist()
        ]
        kept = self.table.select(["image_id", "etag", "bytes_sha256"])
        return kept.append_column("fingerprint", pa.array(prints, pa.string()))

    @property
    def drawn_on(self) -> list[Uncorrected]:
        """The images as they were when they were corrected."""
        identity = self.table.select(["image_id", "uri", "etag"]).to_pylist()
        return [Uncorrected(**one, drawn_on=one["image_id"]) for one in identity]

    def rows(self, images: Sequence[Uncorrected], names: Sequence[str], run_id: str) -> pa.Table:
        """Return rows of ANNOTATED for the images, under these class names."""
        drawn_on = pa.array([image.drawn_on for image in images], pa.string())
        drawn = self.table.take(pc.index_in(drawn_on, self.table["image_id"].combine_chunks()))
        # A file that was touched, copied or moved is not quite the one that was corrected.
        rows = [
            {
                **_row(correction, names, run_id),
                "image_id": image.image_id,
                "uri": image.uri,
                "etag": image.etag,
            }
            for image, correction in zip(images, drawn.to_pylist(), strict=True)
        ]
        return table_from_rows(rows, ANNOTATED)


def correction_of(row: Mapping[str, Any], map_HW: NDArray[np.int32], names: Sequence[str]) -> Row:
    """Return a row of CORRECTIONS: identity and content of `row`, labels of a map of indices."""
    flat_HW = np.ones(map_HW.shape, np.float32) * (map_HW != IGNORE)
    regions = [
        {"label": segment["label"], "counts": segment["counts"]}
        for segment in encode_segments(map_HW, flat_HW, names, 0.0)
    ]
    regions.sort(key=lambda region: str(region["label"]))
    digest = hashlib.sha256(f"{row['height']}x{row['width']}".encode())
    for region in regions:
        digest.update(region["label"].encode() + b"\0" + region["counts"] + b"\0")
    kept = {name: row[name] for name in CORRECTIONS.names if name in row}
    return {**kept, "sha256": digest.hexdigest(), "regions": regions}


def _row(correction: Row, names: Sequence[str], run_id: str) -> Row:
    size = (correction["height"], correction["width"])
    map_HW = np.full(size, IGNORE, np.int32)
    for region in correction["regions"]:
        if region["label"] in names:
            map_HW[decode_mask(region["counts"], size)] = names.index(region["label"])
    is_labelled_HW = map_HW != IGNORE
    segments = encode_segments(map_HW, is_labelled_HW.astype(np.float32), names, 0.0)
    return {
        **{name: correction[name] for name in ANNOTATED.names if name in correction},
        "status": LABELLED,
        "fingerprint": Fingerprints.of_correction(correction["sha256"], names),
        "run_id": run_id,
        "annotator": HUMAN,
        "n_proposals": 0,
        "coverage": float(is_labelled_HW.mean()),
        "mean_score": 1.0 if segments else None,
        "segments": segments,
    }
