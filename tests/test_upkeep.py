"""versions, verify and vacuum: what a dataset holds, whether it is whole, what may go."""

import contextlib
import errno
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from jobs.annotation_done import take_over
from jobs.cli import main
from jobs.vacuum import vacuum
from jobs.verify import verify
from pipeline.dataset import publish, read_manifest, versions
from pipeline.files import list_files, write_bytes
from pipeline.fingerprints import Fingerprints
from pipeline.lock import DatasetLock
from pipeline.parts import (
    Share,
    merge_images,
    recorded_parts,
    write_corrections,
    write_images,
    write_part,
)
from pipeline.planner import Outcome, Planner
from pipeline.segments import encode_segments
from pipeline.text_vectors import Texts, write_texts
from schemas.annotation import (
    ANNOTATED,
    ANNOTATED_AND_EMBEDDED,
    CORRECTIONS,
    INVENTORY,
    LABELLED,
    QUARANTINED,
    image_id,
    table_from_rows,
)
from schemas.errors import LockedError, OutputError
from schemas.manifest import Changes, Counts, DataFile
from schemas.upkeep_config import VacuumConfig, VerifyConfig
from tests.classify import FINGERPRINTS
from tests.helpers import draw_classes
from tests.test_manifest import MANIFEST

CLASSES = draw_classes("001", "021")
NAMES = ("sky", "cat", "tree")
DRAFT = f"{'0a' * 12}.parquet.{'0b' * 16}.draft"


def labelled(uri, **changes):
    segments = encode_segments(CLASSES, np.full(CLASSES.shape, 0.5, np.float32), NAMES, 0.0)
    return {
        "image_id": image_id(uri), "uri": uri, "etag": "1", "height": 2, "width": 3,
        "status": LABELLED, "fingerprint": "l", "run_id": "run", "n_proposals": 3,
        "annotator": "model", "coverage": 1.0, "mean_score": 0.5, "segments": segments,
    } | changes  # fmt: skip


def quarantined(uri):
    error = {"stage": "decode", "code": "corrupt", "message": "why"}
    kept = {
        "image_id": image_id(uri),
        "uri": uri,
        "fingerprint": "d",
        "run_id": "run",
        "annotator": "model",
    }
    return kept | {"status": QUARANTINED, "error": error, "n_proposals": 0, "segments": []}


def write(dataset, *rows, run="run"):
    return write_images(dataset, run, table_from_rows(rows, ANNOTATED))


def manifest_of(*files: DataFile, version=1, embeddings=(), age_hours=0.0, **changes):
    labelled, quarantined = (sum(getattr(f, n) for f in files) for n in (LABELLED, QUARANTINED))
    total = labelled + quarantined
    counts = Counts(inventory=total, labelled=labelled, quarantined=quarantined, reasons={})
    fields = {
        "version": version,
        "counts": counts,
        "changes": Changes(kept=0, done=total, from_embeddings=0, removed=0),
        "images": files,
        "embeddings": embeddings,
        "run_id": f"run-{version}",
        "created": datetime.now(UTC) - timedelta(hours=age_hours),
    }
    return MANIFEST.model_copy(update=fields | changes)


@pytest.fixture
def dataset(tmp_path):
    return str(tmp_path / "labels")


def problems(dataset, **settings):
    chosen = {"all_label_maps": True} | settings
    return verify(VerifyConfig(dataset=dataset, version=None, **chosen)).problems


def test_a_whole_dataset_has_no_problems(dataset, capsys):
    files = write(dataset, labelled("a"), quarantined("b")), write(dataset, labelled("c"))
    publish(dataset, manifest_of(*files))
    result = verify(VerifyConfig(dataset=dataset, version=None, all_label_maps=True))
    assert (result.problems, result.images, result.files, result.label_maps) == ((), 3, 2, 2)
    assert main(["verify", dataset]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["problems"] == 0


def damage_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, words",
    [
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "bytes, not"),
        (damage_bytes, "SHA-256"),
    ],
    ids=["missing", "truncated", "changed"],
)
def test_a_damaged_file_is_found(dataset, capsys, damage, words):
    file = write(dataset, labelled("a"), labelled("b"))
    publish(dataset, manifest_of(file))
    damage(Path(dataset) / file.path)
    assert any(file.path in problem and words in problem for problem in problems(dataset))
    assert main(["verify", dataset]) == 1
    assert words in capsys.readouterr().err


def test_an_image_of_two_rows_is_found(dataset):
    files = write(dataset, labelled("a"), labelled("b")), write(dataset, labelled("a"))
    publish(dataset, manifest_of(*files))
    assert problems(dataset) == (f"image {image_id('a')} has 2 rows",)


def test_an_account_that_does_not_add_up_is_found(dataset):
    file = write(dataset, labelled("a"), quarantined("b"))
    wrong = Counts(inventory=3, labelled=2, quarantined=1, reasons={})
    publish(dataset, manifest_of(file, counts=wrong))
    assert set(problems(dataset)) == {
        "2 rows were read, the inventory has 3",
        "the manifest tells 3 rows, its files have 2",
        "the manifest tells 2 labelled, its files have 1",
    }
    lying = file.model_copy(update={"rows": 3, "labelled": 2})
    publish(dataset, manifest_of(lying, version=2))
    assert any("2 rows, not 3" in problem for problem in problems(dataset))


def broken_segments():
    whole = labelled("a")["segments"]
    overlap = [{**segment, "counts": whole[0]["counts"]} for segment in whole]
    small_box = [{**segment, "box": [0, 0, 1, 1]} for segment in whole]
    wrong_area = [{**segment, "area": segment["area"] + 1} for segment in whole]
    return {
        "overlap": (overlap, 1.0, "overlaps another"),
        "box": (small_box, 1.0, "reaches out of its box"),
        "area": (wrong_area, 1.0, "pixels, not its area"),
        "coverage": (whole, 0.5, "is labelled, not 0.5"),
        "gibberish": ([{**whole[0], "counts": b"\x01"}], 1.0, ""),
    }


@pytest.mark.parametrize("kind", broken_segments())
def test_a_label_map_that_is_no_partition_is_found(dataset, kind):
    segments, coverage, words = broken_segments()[kind]
    row = labelled("a", segments=segments, coverage=coverage)
    publish(dataset, manifest_of(write(dataset, row, labelled("b"))))
    found = problems(dataset)
    assert found and all(", a: " in problem for problem in found)
    assert any(words in problem for problem in found)
    assert problems(dataset, all_label_maps=False, sample=0) == ()


def test_a_sample_is_about_as_large_as_asked(dataset):
    publish(dataset, manifest_of(write(dataset, *(labelled(f"{n}") for n in range(400)))))
    result = verify(VerifyConfig(dataset=dataset, version=None, sample=100))
    assert 60 < result.label_maps < 140


def test_embeddings_are_verified_too(dataset):
    row = labelled("a") | {
        "proposal_fingerprint": "p", "embedding_fingerprint": "e", "clip_embeds": b"1234",
    }  # fmt: skip
    part = write_part(dataset, "run", table_from_rows([row], ANNOTATED_AND_EMBEDDED))
    publish(dataset, manifest_of(part.images, embeddings=(part.embeddings,)))
    assert problems(dataset) == ()
    damage_bytes(Path(dataset) / part.embeddings.path)
    assert any("embeddings/" in problem and "SHA-256" in problem for problem in problems(dataset))


def test_versions_are_listed_with_what_changed(dataset, capsys):
    one, two = write(dataset, labelled("a")), write(dataset, labelled("b"), quarantined("c"))
    publish(dataset, manifest_of(one))
    changes = Changes(kept=1, done=2, from_embeddings=0, removed=4)
    publish(dataset, manifest_of(one, two, version=2, changes=changes))
    assert main(["versions", dataset]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["versions"]
    assert [row["version"] for row in told] == [1, 2]
    newest = told[1]
    assert (newest["images"], newest["done"], newest["removed"], newest["files"]) == (3, 2, 4, 2)
    assert newest["size_bytes"] == one.size_bytes + two.size_bytes
    assert main(["versions", f"{dataset}-absent"]) == 2
    assert "holds no published dataset" in capsys.readouterr().err


@pytest.fixture
def aged(dataset):
    """Three versions, the first of last month, and leftovers of runs that were cut short."""
    shared, old = write(dataset, labelled("a")), write(dataset, labelled("b"))
    new = write(dataset, labelled("c"))
    publish(dataset, manifest_of(shared, old, age_hours=700))
    publish(dataset, manifest_of(shared, version=2, age_hours=1))
    publish(dataset, manifest_of(shared, new, version=3))
    for number in (1, 2, 3):
        write_bytes(dataset, f"_runs/run-{number}/config.json", b"{}")
    lost = write_part(dataset, "lost", table_from_rows([labelled("d")], ANNOTATED))
    write_bytes(dataset, f"images/run=lost/part-{DRAFT}", b"half")
    for path in list_files(dataset, ""):
        os.utime(Path(dataset) / path, (1, 1))
    young = write(dataset, labelled("e"), run="young")
    return {"old": old.path, "lost": lost.images.path, "young": young.path}


def test_vacuum_shows_what_it_would_delete_and_deletes_nothing(dataset, aged, capsys):
    before = list_files(dataset, "")
    assert main(["vacuum", dataset, "--keep-versions", "1"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out.splitlines()[-1])
    # Version 2 is not among the newest, but young.
    assert (told["deleted"], told["versions"], told["files"]) == (False, [1], 5)
    assert aged["old"] in captured.err and aged["lost"] in captured.err
    assert list_files(dataset, "") == before


def test_vacuum_deletes_what_no_kept_version_names(dataset, aged):
    result = vacuum(VacuumConfig(dataset=dataset, delete=True, keep_versions=1))
    assert (result.versions, len(result.files)) == ((1,), 5)
    assert versions(dataset) == [2, 3]
    for number in (2, 3):
        checked = verify(VerifyConfig(dataset=dataset, version=number, all_label_maps=True))
        assert checked.problems == ()
    left = list_files(dataset, "")
    assert aged["young"] in left and aged["old"] not in left and aged["lost"] not in left
    assert [path for path in left if path.startswith("_runs/")] == [
        "_runs/run-2/config.json",
        "_runs/run-3/config.json",
    ]
    again = vacuum(VacuumConfig(dataset=dataset, delete=True, keep_versions=1))
    assert (again.versions, again.files) == ((), ())


def test_vacuum_waits_for_no_run_and_needs_a_dataset(dataset, aged, tmp_path):
    with (
        DatasetLock(dataset, "annotate", 1.0),
        pytest.raises(LockedError, match="held by run annotate"),
    ):
        vacuum(VacuumConfig(dataset=dataset, delete=True, lock_ttl_s=1.0))
    with pytest.raises(OutputError, match="holds no published dataset"):
        vacuum(VacuumConfig(dataset=str(tmp_path / "nothing")))
    assert not (tmp_path / "nothing").exists()


def make_old(dataset, *paths):
    for path in paths or list_files(dataset, ""):
        os.utime(Path(dataset) / path, (1, 1))


@pytest.mark.parametrize("which", range(1, 6))
def test_vacuum_deletes_nothing_when_the_versions_cannot_be_listed(dataset, monkeypatch, which):
    publish(dataset, manifest_of(write(dataset, labelled("a")), age_hours=900))
    make_old(dataset)
    real, calls = os.scandir, []

    def scandir(path="."):
        calls.extend([path] * str(path).endswith("_manifest"))
        if len(calls) == which and path == calls[-1]:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with contextlib.suppress(OutputError):
        vacuum(VacuumConfig(dataset=dataset, delete=True))
    monkeypatch.undo()
    assert problems(dataset) == ()


def test_vacuum_refuses_a_dataset_whose_versions_vanish_meanwhile(dataset, monkeypatch):
    publish(dataset, manifest_of(write(dataset, labelled("a"))))
    make_old(dataset)
    answers = iter([[1], []])
    monkeypatch.setattr("jobs.vacuum.versions", lambda dataset: next(answers))
    with pytest.raises(OutputError, match="holds no published dataset"):
        vacuum(VacuumConfig(dataset=dataset, delete=True))
    assert problems(dataset) == ()


def taken_over(dataset):
    """Return the ids of the images that a run would take as done."""
    with Planner(FINGERPRINTS, 256, 1) as planner:
        names = ("image_id", "uri", "etag", "size_bytes", "signature")
        rows = [dict.fromkeys(names) | {"image_id": image_id(uri), "uri": uri} for uri in "abd"]
        planner.add_inventory([table_from_rows(rows, INVENTORY)])
        take_over(planner, dataset, read_manifest(dataset), ())
        planner.left(dataset, "next")
        shares = [share for merge in planner.outcome(9).merges for share in merge]
        kept = planner.outcome(9).kept
        return {share.path for share in shares} | {file.path for file in kept}


def part_of(dataset, run, uri):
    row = labelled(uri, fingerprint=FINGERPRINTS.label) | {
        "proposal_fingerprint": "p", "embedding_fingerprint": "e", "clip_embeds": b"1234",
    }  # fmt: skip
    return write_part(dataset, run, table_from_rows([row], ANNOTATED_AND_EMBEDDED))


def test_vacuum_deletes_records_with_the_parts_of_a_run_that_published(dataset):
    parts = [part_of(dataset, "run-1", uri) for uri in "ab"]
    merged = merge_images(dataset, "run-1", [Share(part.images.path) for part in parts])
    publish(dataset, manifest_of(merged))
    write_bytes(dataset, "_runs/run-1/todo/000000.parquet", b"")
    write_bytes(dataset, "_runs/run-1/config.json", b"{}")
    make_old(dataset)
    result = vacuum(VacuumConfig(dataset=dataset, delete=True))
    assert len(result.files) == 7
    assert list_files(dataset, "_runs") == ["_runs/run-1/config.json"]
    assert (recorded_parts(dataset), taken_over(dataset)) == ({}, {merged.path})


@pytest.mark.parametrize("keeps, left", [(None, set()), ("exact", {"a"})], ids=["none", "kept"])
def test_embeddings_that_are_gone_are_as_if_none_had_been_kept(dataset, caplog, keeps, left):
    parts = [part_of(dataset, "run-1", uri) for uri in "ab"]
    embeddings = tuple(part.embeddings for part in parts)
    publish(dataset, manifest_of(*(part.images for part in parts), embeddings=embeddings))
    (Path(dataset) / embeddings[0].path).unlink()
    with Planner(FINGERPRINTS, 256, 1, keeps) as planner:
        rows = [{"image_id": image_id(uri), "uri": uri} for uri in "ab"]
        planner.add_inventory([table_from_rows(rows, INVENTORY)])
        take_over(planner, dataset, read_manifest(dataset), ())
        assert set(planner.preview(9).sample["uri"].to_pylist()) == left
        assert planner.embeddings() == Outcome([embeddings[1]])
    assert "1 of 2 files of embeddings are gone" in caplog.text


@pytest.mark.parametrize("young", ["images", "embeddings", "record"])
def test_vacuum_keeps_or_deletes_a_part_whole(dataset, young):
    publish(dataset, manifest_of(write(dataset, labelled("a"))))
    part = part_of(dataset, "lost", "d")
    ((record, _),) = recorded_parts(dataset).items()
    paths = {"images": part.images.path, "embeddings": part.embeddings.path, "record": record}
    make_old(dataset, *(path for name, path in paths.items() if name != young))
    assert vacuum(VacuumConfig(dataset=dataset, delete=True)).files == ()
    assert part.images.path in taken_over(dataset)
    make_old(dataset, paths[young])
    assert sorted(vacuum(VacuumConfig(dataset=dataset, delete=True)).files) == [
        record, part.embeddings.path, part.images.path,
    ]  # fmt: skip


def test_vacuum_deletes_records_before_the_files_that_they_name(dataset, monkeypatch):
    publish(dataset, manifest_of(write(dataset, labelled("a"))))
    part_of(dataset, "lost", "d")
    make_old(dataset)
    calls = []
    monkeypatch.setattr("jobs.vacuum.delete_files", lambda _, paths: calls.append(paths))
    vacuum(VacuumConfig(dataset=dataset, delete=True))
    assert [path.partition("/")[0] for call in calls for path in call] == [
        "_runs", "images", "embeddings",
    ]  # fmt: skip
    assert len(calls) == 2


@pytest.mark.parametrize(
    "path",
    [
        "images/train/0.jpg",
        "images/run=5/0.jpg",
        "images/run=5/part-0.parquet",
        f"images/deep/run=5/part-{DRAFT}",
        "embeddings/mine.npz",
        "corrections/notes.txt",
        "_manifest/notes.json",
    ],
)
def test_vacuum_leaves_alone_what_segmill_did_not_write(dataset, path):
    publish(dataset, manifest_of(write(dataset, labelled("a"))))
    write_bytes(dataset, path, b"a photo")
    make_old(dataset)
    assert vacuum(VacuumConfig(dataset=dataset, delete=True)).files == ()
    assert path in list_files(dataset, "")


def test_vacuum_deletes_leftovers_of_every_kind(dataset):
    publish(dataset, manifest_of(write(dataset, labelled("a"))))
    texts = Texts(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32), 1.0)
    write_texts(dataset, Fingerprints.of_correction("a", NAMES), texts)
    write_corrections(dataset, "lost", CORRECTIONS.empty_table())
    part_of(dataset, "lost", "d")
    drafts = ("embeddings/run=lost/part-", "corrections/run=lost/part-")
    for name in ("config.json", "end.json", "log.jsonl", "start.json", "todo/000000.parquet"):
        write_bytes(dataset, f"_runs/lost/{name}", b"")
    for name in (*drafts, "_runs/lost/parts/"):
        write_bytes(dataset, f"{name}{DRAFT}", b"")
    write_bytes(dataset, f"_manifest/v000002.json.{'0b' * 16}.draft", b"")
    make_old(dataset)
    assert len(vacuum(VacuumConfig(dataset=dataset, delete=True)).files) == 14
    assert [path.partition("/")[0] for path in list_files(dataset, "")] == [
        "_lock", "_manifest", "images",
    ]  # fmt: skip


def leftovers(dataset, number):
    """Return what take_over finds of recorded parts when version `number` is the newest."""
    with Planner(FINGERPRINTS, 256, 1) as planner:
        planner.add_inventory([INVENTORY.empty_table()])
        return take_over(planner, dataset, read_manifest(dataset, number), ())


def test_files_of_parts_that_an_old_version_names_are_known(dataset):
    """A run was killed before it had tidied up, and later versions name other files."""
    whole, merged = part_of(dataset, "run-1", "b"), part_of(dataset, "run-1", "d")
    part_of(dataset, "lost", "e")
    records = {part.images.path: record for record, part in recorded_parts(dataset).items()}
    one, two = write(dataset, labelled("d")), write(dataset, labelled("a"))
    embeddings = whole.embeddings, merged.embeddings
    publish(dataset, manifest_of(whole.images, one, embeddings=embeddings))
    named = {*whole.paths, merged.embeddings.path}
    assert leftovers(dataset, 1) == ([records[whole.images.path]], named)
    publish(dataset, manifest_of(two, version=2))
    publish(dataset, manifest_of(two, version=3))
    assert leftovers(dataset, 3) == ([records[whole.images.path]], named)


@pytest.mark.parametrize("gone", ["images", "embeddings"])
def test_a_record_whose_files_are_gone_is_passed_over(dataset, caplog, gone):
    base = write(dataset, labelled("a"))
    publish(dataset, manifest_of(base))
    part, whole = part_of(dataset, "lost", "d"), part_of(dataset, "lost", "b")
    (Path(dataset) / getattr(part, gone).path).unlink()
    assert taken_over(dataset) == {base.path, whole.images.path}
    assert "its files are gone" in caplog.text
    make_old(dataset)
    vacuum(VacuumConfig(dataset=dataset, delete=True))
    assert recorded_parts(dataset) == {}
