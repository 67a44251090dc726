"""Running again: only what is missing is done, and the result is that of a full run."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.annotate import annotate
from jobs.annotation_run import AnnotateResult, AnnotationRun
from jobs.verify import verify
from pipeline.dataset import publish, read_manifest, versions
from pipeline.files import delete_files, list_files, read_bytes, write_bytes
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.parts import Share, merge_images, read_table, recorded_parts, write_part
from pipeline.synthetic import make_scene
from schemas.annotate_config import AnnotateConfig
from schemas.annotation import ANNOTATED
from schemas.errors import LockedError, PublicationError
from schemas.upkeep_config import VerifyConfig
from tests.dataset_checks import check_rows, rows_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SEED = 5_100
SETTINGS: dict[str, Any] = {"propose_batch": 1, "classify_batch": 1, "rows_per_file": 4}


def write_scene(folder: Path, name: str, index: int) -> None:
    Image.fromarray(make_scene(SEED, index).image_HW3).resize((64, 64)).save(folder / name)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        write_scene(folder, f"{index}.png", index)
    (folder / "bad.png").write_bytes(b"not pixels")
    return folder


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "labels")


def run(source: Path, output: str, **settings: Any) -> AnnotateResult:
    chosen = {"vocabulary": EMBEDDED_VOCABULARY, "max_bad_fraction": 1.0, **SETTINGS, **settings}
    return annotate(AnnotateConfig(source=str(source), output=output, **chosen))


def content(dataset: str) -> dict[str, Any]:
    """All rows by name, but for what tells which run wrote them."""
    rows = rows_of(dataset)
    check_rows(rows, whole=True)
    return {
        Path(row["uri"]).name: {key: row[key] for key in row if key not in {"run_id"}}
        for row in rows
    }


def equals_a_full_run(source: Path, output: str, **settings: Any) -> bool:
    fresh = f"{output}-fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    run(source, fresh, **settings)
    return content(output) == content(fresh)


def test_new_and_changed_images_are_done_and_removed_ones_leave(source: Path, output: str) -> None:
    first = run(source, output)
    assert (first.version, first.changes.done, first.counts.quarantined) == (1, 7, 1)

    again = run(source, output)
    assert (again.version, again.published, again.changes.done) == (1, False, 0)

    write_scene(source, "new.png", 10)
    write_scene(source, "0.png", 11)
    (source / "1.png").unlink()
    second = run(source, output)
    changes = second.changes
    assert (second.version, changes.done, changes.kept, changes.removed) == (2, 2, 5, 1)
    assert equals_a_full_run(source, output)

    # The version before is as it was, down to the images that changed.
    assert read_manifest(output, 1).counts.inventory == 7
    runs = {row["run_id"] for row in rows_of(output)}
    assert runs == {first.run_id, second.run_id}
    files = {file.path for version in (1, 2) for file in read_manifest(output, version).images}
    assert {path for path in list_files(output, "images")} == files

    retried = run(source, output, retry_quarantined=True)
    assert (retried.version, retried.changes.done) == (3, 1)


def test_other_settings_redo_what_depends_on_them_and_nothing_else(
    source: Path, output: str, tmp_path: Path
) -> None:
    run(source, output, keep_embeddings="exact")
    vocabulary = tmp_path / "few.yaml"
    vocabulary.write_text("classes: [red circle, blue square, green ring, gravel]")

    # A new class list, prompt and weight: no image is read, so it may be gone.
    hidden = source.rename(source.with_name("hidden"))
    hidden.rename(source)  # renaming keeps etags: time of change and size
    settings: dict[str, Any] = {"vocabulary": vocabulary, "prompts": "vild", "ensemble_weight": 0.6}
    changed = run(source, output, keep_embeddings="exact", **settings)
    assert (changed.changes.done, changed.changes.from_embeddings) == (6, 6)
    assert changed.changes.kept == 1  # the bad one: no vocabulary makes it better
    assert equals_a_full_run(source, output, **settings)

    # Other crops: CLIP runs again on stored proposals.
    settings["mask_threshold"] = 0.4
    cropped = run(source, output, keep_embeddings="exact", **settings)
    assert (cropped.changes.done, cropped.changes.from_embeddings) == (6, 6)
    assert equals_a_full_run(source, output, **settings)

    # Other proposals: everything.
    settings["short_edge"] = 96
    proposed = run(source, output, **settings)
    assert (proposed.changes.done, proposed.changes.from_embeddings) == (6, 0)
    assert equals_a_full_run(source, output, **settings)
    assert read_manifest(output).embeddings == ()
    assert versions(output) == [1, 2, 3, 4]


def test_relabelling_reads_no_image(source: Path, output: str, tmp_path: Path) -> None:
    run(source, output, keep_embeddings="exact")
    for path in source.glob("?.png"):
        # The same size and time, so the same etag; but there is nothing in it any more.
        stat = path.stat()
        path.write_bytes(b"\x00" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    result = run(source, output, keep_embeddings="exact", min_score=0.01)
    assert (result.changes.from_embeddings, result.counts.labelled) == (6, 6)


def test_what_a_run_finished_before_it_failed_is_taken_over(source: Path, output: str) -> None:
    run(source, output)
    write_scene(source, "new.png", 10)
    # Another writer, which ignores the lock, publishes version 2 while this run is at work.
    manifest = read_bytes(output, "_manifest/v000001.json")
    writer = _PublishMeanwhile(output, manifest)
    with pytest.raises(PublicationError, match=r"version 2 .* was published by another run"):
        run_with(source, output, writer)
    assert versions(output) == [1, 2]
    result = run(source, output)
    assert (result.version, result.changes.done, result.changes.kept) == (3, 0, 8)
    assert equals_a_full_run(source, output)
    left = list_files(output, "_runs")
    assert not [path for path in left if "/parts/" in path or "/todo/" in path]


class _PublishMeanwhile:
    """A progress that publishes a version of its own when the stages start."""

    def __init__(self, output: str, manifest: bytes) -> None:
        self._output, self._manifest = output, manifest

    def __enter__(self) -> "_PublishMeanwhile":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, what: str) -> None:
        pass

    def start(self, stages: object, total: int) -> None:
        text = self._manifest.replace(b'"version": 1', b'"version": 2', 1)
        write_bytes(self._output, "_manifest/v000002.json", text)

    def update(self, done: object) -> None:
        pass


def test_a_run_that_lost_the_dataset_says_so_whatever_it_stumbles_over(
    source: Path, output: str
) -> None:
    with pytest.raises(LockedError, match=r"another run took over .*lock 2"):
        run_with(source, output, _TakeOver(output))
    assert versions(output) == []


class _TakeOver(_PublishMeanwhile):
    """A progress that takes the lock as another run would, and tidies away what was written."""

    def __init__(self, output: str) -> None:
        super().__init__(output, b"")

    def start(self, stages: object, total: int) -> None:
        write_bytes(self._output, "_lock/000002.json", b"{}")

    def update(self, done: Any) -> None:
        if done.get("write"):
            delete_files(self._output, list_files(self._output, "images"))


def run_with(source: Path, output: str, progress: Any) -> AnnotateResult:
    config = AnnotateConfig(
        source=str(source), output=output, vocabulary=EMBEDDED_VOCABULARY, **SETTINGS
    )
    return annotate(config, progress)


def test_old_versions_keep_the_files_that_a_killed_run_did_not_tidy(
    source: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AnnotationRun, "_tidy", killed)
        run(source, output, rows_per_file=1)
    first = read_manifest(output)
    parts = recorded_parts(output).values()
    assert {part.images.path for part in parts} & {file.path for file in first.images}
    # As `correct` would: other files with the same images.
    other = merge_images(output, "other", [Share(file.path) for file in first.images])
    publish(output, first.model_copy(update={"version": 2, "images": (other,)}))
    run(source, output, rows_per_file=1)
    assert not recorded_parts(output)
    for version in versions(output):
        assert verify(VerifyConfig(dataset=output, version=version)).problems == ()


@pytest.mark.parametrize("moment", ["listing", "deleting"])
def test_a_run_that_is_overtaken_as_it_tidies_leaves_the_files(
    source: Path, output: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another run has the dataset, has written a part, and may count on what it found."""
    first: list[set[str]] = []

    def overtake() -> None:
        first.append(set(list_files(output, "images")))
        rows = read_table(output, read_manifest(output).images[0].path, ANNOTATED)
        write_part(output, "other", rows)
        write_bytes(output, "_lock/000002.json", b"{}")

    def recorded(dataset: str) -> Any:
        if moment == "listing":
            overtake()
        return recorded_parts(dataset)

    def delete(dataset: str, paths: list[str]) -> None:
        delete_files(dataset, paths)
        if any("/parts/" in path for path in paths) and moment == "deleting":
            overtake()

    monkeypatch.setattr("jobs.annotation_run.recorded_parts", recorded)
    monkeypatch.setattr("jobs.annotation_run.delete_files", delete)
    run(source, output)
    (before,) = first
    assert before < set(list_files(output, "images"))
    assert [path for path in recorded_parts(output) if path.startswith("_runs/other/")]
