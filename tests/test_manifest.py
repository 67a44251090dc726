"""The manifest as a file: it must read back equal, and refuse what it does not know."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from schemas.manifest import Changes, Counts, DataFile, EmbeddingsFile, Manifest
from schemas.vocabulary import Vocabulary, VocabularyClass

MANIFEST = Manifest(
    version=3,
    created=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
    run_id="run",
    lock=7,
    fingerprint="f" * 64,
    source="photos",
    vocabulary=Vocabulary(classes=(VocabularyClass(name="猫", synonyms=("cat",), seen=True),)),
    counts=Counts(inventory=3, labelled=2, quarantined=1, reasons={"decode/corrupt": 1}),
    changes=Changes(kept=1, done=2, from_embeddings=1, removed=4),
    images=(
        DataFile(
            path="images/run=run/part-000000.parquet",
            sha256="0" * 64,
            size_bytes=10,
            rows=3,
            labelled=2,
            quarantined=1,
            reasons={"decode/corrupt": 1},
        ),
    ),
    embeddings=(
        EmbeddingsFile(
            path="embeddings/run=run/part-000000.parquet",
            sha256="1" * 64,
            size_bytes=20,
            rows=2,
            encoding="exact",
            rows_per_group=8,
        ),
    ),
    config={"extensions": ["jpg"], "short_edge": None, "weight": 0.8},
    models={"proposer": "felzenszwalb"},
    software={"torch": "2.0"},
)


def test_a_manifest_survives_json():
    assert Manifest.model_validate_json(MANIFEST.model_dump_json(indent=2)) == MANIFEST


@pytest.mark.parametrize(
    "change", [{"later": 1}, {"counts": {"labelled": 1}}], ids=["unknown key", "missing count"]
)
def test_a_manifest_of_another_shape_is_refused(change):
    with pytest.raises(ValidationError):
        Manifest.model_validate(MANIFEST.model_dump() | change)
