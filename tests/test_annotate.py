"""The main job through a real Ray: local files, a real S3 server, hostile files."""

import json
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

from jobs import annotation_pools
from jobs.annotate import annotate
from jobs.cli import main
from jobs.evaluate import evaluate
from jobs.export import export
from jobs.progress import TerminalProgress
from jobs.status import status
from pipeline.dataset import newest_version, read_manifest
from pipeline.models import find_proposer
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.models.maskformer import BackboneConfig
from pipeline.models.per_pixel import PerPixel, PerPixelConfig
from pipeline.synthetic import make_scene
from schemas.annotate_config import AnnotateConfig
from schemas.errors import OutputError
from schemas.evaluate_config import EvaluateConfig
from schemas.export_config import ExportConfig
from schemas.runs import RunEnd, RunStart
from schemas.status_config import StatusConfig
from tests.dataset_checks import check_rows, rows_of
from tests.servers import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SEED = 5_000  # scenes of no training, validation or test range


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes with truth, and two files that are no images."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "images").mkdir()
    (folder / "truth").mkdir()
    for index in range(12):
        scene = make_scene(SEED, index)
        Image.fromarray(scene.image_HW3).save(folder / "images" / f"{index:03}.png")
        Image.fromarray(scene.label_map_HW).save(folder / "truth" / f"{index:03}.png")
    return folder


def config(source: str, output: str, **settings: object) -> AnnotateConfig:
    return AnnotateConfig(source=source, output=output, vocabulary=EMBEDDED_VOCABULARY, **settings)  # type: ignore[arg-type]


def test_scenes_become_labels_that_match_the_truth(scenes: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "labels")
    result = annotate(config(str(scenes / "images"), output))
    assert (result.version, result.counts.labelled, result.counts.quarantined) == (1, 12, 0)
    check_rows(rows_of(output), whole=True)
    figures = evaluate(EvaluateConfig(dataset=output, truth=str(scenes / "truth")))
    assert figures.images == 12
    # Far above chance (1 of 72 classes); the figures themselves are in the README.
    assert figures.pixel_accuracy > 0.6 and figures.headline.miou > 0.4
    manifest = read_manifest(output)
    assert len(manifest.fingerprint) == 64
    assert {row["fingerprint"] for row in rows_of(output)} == {manifest.fingerprint}
    assert (tmp_path / "labels" / "_runs" / result.run_id / "config.json").is_file()


def test_bad_files_are_rows_and_decide_the_exit_code(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for index in range(3):
        shutil.copy(scenes / "images" / f"{index:03}.png", folder)
    (folder / "text.jpg").write_text("not an image")
    (folder / "cut.png").write_bytes((scenes / "images" / "004.png").read_bytes()[:900])
    (folder / "notes.md").write_text("passed over")
    output = str(tmp_path / "labels")
    arguments = ["annotate", str(folder), "--output", output]
    arguments += ["--vocabulary", str(EMBEDDED_VOCABULARY)]
    assert main(arguments) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["quarantined"] == 2
    rows = rows_of(output)
    check_rows(rows, whole=True)
    reasons = {Path(row["uri"]).name: row["error"]["code"] for row in rows if row["error"]}
    assert reasons == {"text.jpg": "not_an_image", "cut.png": "corrupt"}
    # Run again with a higher limit: nothing to do, and success.
    assert main([*arguments, "--max-bad-fraction", "0.5"]) == 0
    assert newest_version(output) == 1
    assert "nothing has changed" in capsys.readouterr().err


def test_of_two_runs_that_overlap_the_second_ends_with_3(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["annotate", str(scenes / "images"), "--output", str(tmp_path / "labels")]
    arguments += ["--vocabulary", str(EMBEDDED_VOCABULARY), "--lock-ttl-s", "8"]
    seconds: list[subprocess.CompletedProcess[str]] = []

    class Overlapped(TerminalProgress):
        """Starts the same command, as a schedule would, while this one is at work."""

        def start(self, *what: Any) -> None:
            command = [sys.executable, "-m", "jobs.cli", *arguments]
            seconds.append(subprocess.run(command, capture_output=True, text=True, check=False))
            super().start(*what)

    monkeypatch.setattr("jobs.progress.TerminalProgress", Overlapped)
    assert main(arguments) == 0
    (second,) = seconds
    manifest = read_manifest(str(tmp_path / "labels"))
    assert (second.returncode, manifest.version) == (3, 1)
    assert f"is held by run {manifest.run_id}" in second.stderr
    # The one that was refused leaves no trace; the other tells all of itself.
    (run,) = (tmp_path / "labels" / "_runs").iterdir()
    assert {file.name for file in run.iterdir()} == {
        "config.json", "start.json", "end.json", "log.jsonl",
    }  # fmt: skip
    start = RunStart.model_validate_json((run / "start.json").read_text())
    end = RunEnd.model_validate_json((run / "end.json").read_text())
    assert (start.run_id, start.images, start.to_do) == (manifest.run_id, 12, 12)
    assert (end.outcome, end.version, end.error) == ("published", 1, None)
    assert start.started == end.started < end.ended
    # A run that finds nothing to do is recorded as well.
    assert main(arguments) == 0
    result = status(StatusConfig(dataset=str(tmp_path / "labels"), max_age_hours=1.0))
    assert [run.state for run in result.runs] == ["unchanged", "published"]
    assert (result.finished, result.left, result.problems) == (0, 0, ())


@pytest.mark.parametrize(
    "what", ["jobs.annotation_run.run_flows", "pipeline.dataset.publish",
             "jobs.annotation_run.recorded_parts"],
)  # fmt: skip
def test_a_store_that_fails_in_the_middle_is_no_wrong_setting(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    def fail(*_: object) -> None:
        raise OutputError("cannot write to labels: No space left on device")

    output = str(tmp_path / "labels")
    arguments = ["annotate", str(scenes / "images" / "00[0-1].png"), "--output", output]
    arguments += ["--vocabulary", str(EMBEDDED_VOCABULARY)]
    with monkeypatch.context() as patch:
        patch.setattr(what, fail)
        assert main(arguments) == 1
    message = "No space left on device; what was finished is kept: run again to go on"
    assert message in " ".join(capsys.readouterr().err.split())
    last = status(StatusConfig(dataset=output)).runs[0]
    assert last.state == "failed" and str(last.error).endswith(message)
    assert main(arguments) == 0
    counted = read_manifest(output)
    assert (counted.version, counted.counts.labelled) == (1, 2)


def test_the_per_pixel_baseline_is_an_option_of_the_same_command(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip_dim = find_proposer("maskformer").describe(None).embedding_dim
    backbone = BackboneConfig(name="resnet18", options={"channels": [8, 8, 16, 16]})
    network = PerPixelConfig(
        backbone=backbone, fpn_channels=32, embedding_dim=clip_dim or 0, short_edge=96
    )
    PerPixel(network).save(tmp_path / "fcn")
    output = str(tmp_path / "labels")
    flags = ["--proposer", "per-pixel", "--proposer-weights", str(tmp_path / "fcn")]
    arguments = ["annotate", str(scenes / "images"), "--output", output, *flags]
    arguments += ["--vocabulary", str(EMBEDDED_VOCABULARY), "--keep-embeddings", "exact"]
    assert main([*arguments, "--ensemble-weight", "0.7"]) == 0
    rows = rows_of(output)
    check_rows(rows, whole=True)
    assert [(row["status"], row["n_proposals"]) for row in rows] == [("labelled", 0)] * 12
    # Pixel embeddings do not depend on what is asked of them: no image is read again.
    assert main([*arguments, "--ensemble-weight", "0.4"]) == 0
    assert read_manifest(output).changes.from_embeddings == 12
    again = rows_of(output)
    assert [row["segments"] for row in again] != [row["segments"] for row in rows]
    assert main([*arguments, "--oracle-truth", str(scenes / "truth")]) == 2
    assert "'per-pixel' makes none" in capsys.readouterr().err


def test_from_a_bucket_into_a_bucket(scenes: Path, s3_server: S3Server) -> None:
    fs = s3fs.S3FileSystem()
    fs.mkdir("pictures")
    fs.mkdir("annotations")
    for file in sorted((scenes / "images").glob("*.png"))[:6]:
        fs.put_file(str(file), f"pictures/day one/{file.name}")
    result = annotate(config("s3://pictures/day one", "s3://annotations/labels", rows_per_file=4))
    assert result.counts.labelled == 6
    rows = rows_of("s3://annotations/labels")
    check_rows(rows, whole=True)
    assert {row["uri"] for row in rows} == {
        f"s3://pictures/day one/{index:03}.png" for index in range(6)
    }
    assert all(row["etag"] for row in rows)
    # Without our code: pandas and DuckDB read what the manifest names.
    manifest = json.loads(fs.cat_file("annotations/labels/_manifest/v000001.json"))
    files = [f"s3://annotations/labels/{part['path']}" for part in manifest["images"]]
    frame = pd.concat([pd.read_parquet(BytesIO(fs.cat_file(file))) for file in files])
    assert sorted(frame["uri"]) == sorted(row["uri"] for row in rows)
    connection = duckdb.connect()
    connection.register_filesystem(fs)
    (labels,) = connection.execute(
        "select count(distinct s.label) from "
        "(select unnest(segments) as s from read_parquet($files))",
        {"files": files},
    ).fetchone()
    assert labels == len({segment["label"] for row in rows for segment in row["segments"]})


def test_a_list_of_uris_mixes_stores_and_records_what_is_gone(
    scenes: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    fs = s3fs.S3FileSystem()
    fs.mkdir("mixture")
    fs.put_file(str(scenes / "images" / "001.png"), "mixture/a.png")
    listing = tmp_path / "list.txt"
    listing.write_text(
        f"# two stores\ns3://mixture/a.png\n{scenes}/images/002.png\ns3://mixture/gone.png\n"
        "s3://mixture/a.png\n"
    )
    result = annotate(config(str(listing), str(tmp_path / "labels"), max_bad_fraction=1.0))
    assert (result.counts.inventory, result.counts.labelled, result.repeated) == (3, 2, 1)
    assert result.counts.reasons == {"fetch/not_found": 1}


def test_a_tar_and_a_parquet_file_are_labelled_as_their_images_are(
    scenes: Path, tmp_path: Path
) -> None:
    files = sorted((scenes / "images").iterdir())[:4]
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for file in files[:2]:
            tar.add(file, arcname=f"deep/{file.name}")
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files[2:]]
    pq.write_table(pa.table({"image": images}), tmp_path / "train.parquet", row_group_size=1)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/shard.tar\n{tmp_path}/train.parquet\n")
    packed, plain = str(tmp_path / "packed"), str(tmp_path / "plain")
    result = annotate(config(str(tmp_path / "list.txt"), packed))
    assert result.counts.labelled == 4
    annotate(config(str(scenes / "images" / "00[0-3].png"), plain))
    segments = [
        {Path(row["uri"]).name: row["segments"] for row in rows_of(output)}
        for output in (packed, plain)
    ]
    assert segments[0] == segments[1]
    check_rows(rows_of(packed), whole=True)
    figures = evaluate(EvaluateConfig(dataset=packed, truth=str(scenes / "truth")))
    assert figures.images == 4
    # Exported with their pictures, which are read again.
    target = str(tmp_path / "export")
    export(ExportConfig(dataset=packed, output=target, format="detectron2-sem-seg", images="link"))
    written = [path.read_bytes() for path in Path(target).rglob("*.png")]
    assert all(file.read_bytes() in written for file in files)


def test_weight_free_proposals_label_photos(tmp_path: Path) -> None:
    from skimage import data

    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(data, name)()).resize((200, 150)).save(folder / f"{name}.jpg")
    output = str(tmp_path / "labels")
    annotate(config(str(folder), output, proposer="felzenszwalb", short_edge=120))
    rows = rows_of(output)
    check_rows(rows, whole=True)
    assert [(row["height"], row["width"]) for row in rows] == [(150, 200)] * 3
    assert all(row["n_proposals"] > 3 for row in rows)


def test_an_image_that_kills_its_decoder_costs_only_itself(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for index in range(10):  # more than one block, so that workers decode on after the death
        shutil.copy(scenes / "images" / f"{index:03}.png", folder)
    Image.new("RGB", (9000, 9000)).save(folder / "004-slow.png", compress_level=1)
    later = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    Image.new("RGB", (6, 4)).save(folder / "moving.gif", save_all=True, append_images=later)
    output = str(tmp_path / "labels")
    result = annotate(config(str(folder), output, max_decode_seconds=0.2, max_bad_fraction=1.0))
    assert result.counts.reasons == {"decode/too_slow": 1}
    rows = {Path(row["uri"]).name: row for row in rows_of(output)}
    check_rows(rows.values(), whole=True)
    assert rows["004-slow.png"]["error"]["code"] == "too_slow"
    assert (rows["000.png"]["frames"], rows["moving.gif"]["frames"]) == (1, 3)
    assert rows["004-slow.png"]["frames"] is None


def test_two_runs_give_equal_labels(scenes: Path, tmp_path: Path) -> None:
    outputs = [str(tmp_path / name) for name in ("one", "two")]
    for output, batch in zip(outputs, (2, 5), strict=True):
        annotate(config(str(scenes / "images" / "00*.png"), output, classify_batch=batch))
    one, two = (
        {row["uri"]: [s["counts"] for s in row["segments"]] for row in rows_of(output)}
        for output in outputs
    )
    assert one == two


def test_sizes_of_batches_are_measured_on_the_first_images(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotation_pools, "TRIED", (1, 2))
    monkeypatch.setattr(annotation_pools, "_ROUNDS_OF_BATCHES", 2)
    monkeypatch.setattr(annotation_pools, "_PROBES_IN_A_RUN", 1)
    for number in range(4):
        shutil.copytree(scenes / "images", tmp_path / "images" / str(number))
    output = str(tmp_path / "labels")
    batches = {"propose_batch": "auto", "classify_batch": "auto"}
    result = annotate(config(str(tmp_path / "images"), output, **batches))
    assert result.counts.labelled == 48
    end = tmp_path / "labels" / "_runs" / result.run_id / "end.json"
    meter = RunEnd.model_validate_json(end.read_text()).meter
    assert meter is not None
    assert [flow.images for flow in meter.flows] == [16, 32]
    tried, later = ({stage.name: stage for stage in flow.stages} for flow in meter.flows)
    for pool in ("propose", "classify"):
        assert set(tried[pool].tried_s) == {1, 2} and not later[pool].tried_s


def test_ten_real_photos(shared: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "labels")
    annotate(config(str(shared / "photos" / "n01*0_*.JPEG"), output, proposer="felzenszwalb"))
    check_rows(rows_of(output), whole=True)


def test_hostile_files_end_in_rows(shared: Path, tmp_path: Path) -> None:
    folder = shared / "odd"
    truth = pd.read_csv(folder / "manifest.csv").set_index("file")["pillow13_outcome"]
    # The limit keeps the test short: labels are made at the full size of 70-megapixel images.
    settings = {"extensions": ("*",), "max_bad_fraction": 1.0, "max_image_pixels": 3_000_000}
    settings["proposer"] = "felzenszwalb"
    output = str(tmp_path / "labels")
    result = annotate(config(str(folder), output, short_edge=32, **settings))
    rows = {Path(row["uri"]).name: row for row in rows_of(output)}
    check_rows(rows.values(), whole=True)
    assert result.counts.inventory == len(truth) + 1  # the manifest itself is no image
    judged = [rows[name] for name in truth.index]
    accepted = np.array(
        [row["error"] is None or row["error"]["code"] == "too_many_pixels" for row in judged]
    )
    readable = np.array([outcome == "ok" or "Bomb" in outcome for outcome in truth])
    assert (accepted == readable).mean() > 0.95
