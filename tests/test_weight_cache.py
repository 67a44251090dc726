"""Weights in a store: pinned by the driver, fetched once per machine, refused when changed."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import s3fs

from jobs.annotation_plan import AnnotationPlan
from pipeline.models import weight_cache
from pipeline.models.embedded import EMBEDDED_PROPOSER, EMBEDDED_VOCABULARY
from pipeline.models.weight_cache import FOLDER_VARIABLE, local_copy, pinned
from pipeline.models.weights import sha256_of
from pipeline.stages.propose import Propose
from pipeline.synthetic import TEST_SEED
from schemas.annotate_config import AnnotateConfig
from schemas.errors import ModelError
from tests.bench.scenes import decoded

STORE = "memory://weights"
PROPOSER = f"{STORE}/proposer"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """A store that holds the embedded proposer, and an empty cache."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.put(f"{EMBEDDED_PROPOSER}/", "/weights/proposer/", recursive=True)
    yield fs
    fs.rm("/weights", recursive=True)


def test_what_is_no_url_is_left_alone():
    for weights in (None, "openai", "folder/proposer", "/folder/clip.pt"):
        assert pinned(weights) == local_copy(weights) == weights


def test_a_directory_is_fetched_once_and_known_by_its_hash(store):
    reference = pinned(PROPOSER)
    assert reference == f"{PROPOSER}#sha256={sha256_of(EMBEDDED_PROPOSER)}"
    assert pinned(reference) == reference
    copy = Path(local_copy(reference))
    assert copy.name == "proposer" and sha256_of(copy) == sha256_of(EMBEDDED_PROPOSER)
    store.rm("/weights/proposer/config.json")
    assert local_copy(reference) == str(copy)  # the store is not asked again


@pytest.mark.parametrize("name", ["w [1]", "w*", "w?"])
def test_a_directory_whose_name_looks_like_a_glob_is_fetched(store, tmp_path, name):
    shutil.copytree(EMBEDDED_PROPOSER, tmp_path / name / "deep")
    store.put(f"{EMBEDDED_PROPOSER}/", f"/weights/{name}/deep/", recursive=True)
    for url in (f"file://{tmp_path}/{name}", f"{STORE}/{name}"):
        copy = Path(local_copy(url))
        assert copy.name == name and sha256_of(copy / "deep") == sha256_of(EMBEDDED_PROPOSER)


@pytest.mark.s3
def test_a_directory_of_s3_is_fetched_without_its_marker(s3_server):
    fs = s3fs.S3FileSystem()
    fs.mkdir("kept-weights")
    fs.put(f"{EMBEDDED_PROPOSER}/", "kept-weights/w [1]/", recursive=True)
    fs.pipe_file("kept-weights/w [1]/", b"")
    copy = Path(local_copy("s3://kept-weights/w [1]"))
    assert copy.name == "w [1]" and sha256_of(copy) == sha256_of(EMBEDDED_PROPOSER)


def test_workers_that_start_together_fetch_once(monkeypatch):
    reference = pinned(PROPOSER)
    shutil.rmtree(weight_cache._folder())  # another machine than the driver's
    opened, open_store = [], weight_cache.open_store

    def counted(url, error):
        opened.append(url)
        return open_store(url, error)

    monkeypatch.setattr(weight_cache, "open_store", counted)
    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(local_copy, [reference] * 4))
    assert len(copies) == len(opened) == 1


def test_changed_weights_are_refused_where_the_hash_is_told(store):
    reference = pinned(PROPOSER)
    shutil.rmtree(weight_cache._folder())
    store.pipe_file("/weights/proposer/config.json", b"{}")
    with pytest.raises(ModelError, match=r"have sha256 \w{64}, not \w{64}: they were changed"):
        local_copy(reference)
    assert pinned(PROPOSER) != reference
    left = [path.name for path in weight_cache._folder().iterdir()]
    assert not [name for name in left if name.startswith(".fetch-")]


def test_weights_that_are_not_there_are_named():
    with pytest.raises(ModelError, match="there are no weights at memory://weights/other"):
        pinned(f"{STORE}/other")
    with pytest.raises(ModelError, match="scheme 'ftp' of ftp://host/proposer is not supported"):
        pinned("ftp://host/proposer")


def settings(**changes):
    return AnnotateConfig(
        source="photos", vocabulary=EMBEDDED_VOCABULARY, output="labels", **changes
    )


def test_a_run_knows_its_weights_by_hash_wherever_they_are():
    """The embedded weights, under an address: nothing has to be done again."""
    plan, other = (
        AnnotationPlan.of(settings()),
        AnnotationPlan.of(settings(proposer_weights=PROPOSER)),
    )
    assert plan.fingerprints == other.fingerprints
    assert other.config.proposer_weights == pinned(PROPOSER)


def test_the_stage_computes_with_weights_from_a_store():
    images = decoded(TEST_SEED, 1)
    here, there = (
        Propose("maskformer", weights, 32, "float32")(images).to_pylist()[0]["mask_logits"]
        for weights in (None, pinned(PROPOSER))
    )
    assert here == there
