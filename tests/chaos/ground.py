"""Where schedules take place: a corpus in two states, on a disk and on a real S3 server.

The second state has new, changed and missing images. What the datasets must hold in the end comes
from an undisturbed run on each state.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import s3fs
from PIL import Image

from pipeline.dataset import read_manifest, read_rows
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.synthetic import make_scene
from schemas.annotation import image_id
from tests.chaos.proxy import FaultyStore

SEED: Final = 5_900  # scenes of no training, validation or test range
IMAGES: Final = 56
SIDE: Final = 48
# Batches of one image: then a score does not depend on what else was in a batch.
SETTINGS: Final = {
    "vocabulary": str(EMBEDDED_VOCABULARY),
    "propose-batch": "1",
    "classify-batch": "1",
    "short-edge": str(SIDE),
    "object-store-mb": "100",
    "lock-ttl-s": "5",
    "max-bad-fraction": "1",
}
READ_TIMEOUT_S: Final = 2
_BUCKET: Final = "chaos"
_TIME_OF_CHANGE: Final = 1_700_000_000  # seconds since 1970; a local image's etag holds it

_OF_ONE_RUN: Final = ("run_id", "image_id", "uri", "etag")

Row = dict[str, Any]
Stages = Literal["tiny", "quick"]  # the tiny models, or the stages of tests.chaos.quick


def states() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The corpus by name before and after a change of it: scenes, and files that are no images."""
    pictures = [_png(index) for index in range(IMAGES + 8)]
    before = {f"{index:03}.png": pictures[index] for index in range(IMAGES)}
    before["cut.png"] = pictures[0][: len(pictures[0]) // 2]
    before["empty.png"] = b""
    before["text.png"] = b"not pixels"
    after = dict(before)
    for index in (3, 17, 40):
        after[f"{index:03}.png"] = pictures[IMAGES + index % 4]
    for name in ("005.png", "020.png", "text.png"):
        del after[name]
    for index in range(4, 8):
        after[f"new-{index}.png"] = pictures[IMAGES + index]
    after["new-bad.png"] = b"\x89PNG"
    return before, after


@dataclass
class Ground:
    """One store with a source; `folder` is a folder of this machine for all that is local."""

    folder: Path
    store: str  # disk or s3
    proxy: FaultyStore | None = None  # before the S3 server, whose own address is the environment's
    disk: "Ground | None" = None  # where references are made, if not here
    _references: dict[tuple[int, Stages], dict[str, Row]] = field(default_factory=dict)

    @cached_property
    def images(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        return states()

    @property
    def root(self) -> str:
        """Where sources and datasets are."""
        return f"s3://{_BUCKET}" if self.store == "s3" else str(self.folder)

    @property
    def source(self) -> str:
        return f"{self.root}/source"

    def output(self, name: str) -> str:
        return f"{self.root}/{name}"

    def set_source(self, state: int) -> None:
        """Give the source one of its two states."""
        wanted, other = self.images[state], self.images[1 - state]
        if self.store == "s3":
            fs = s3fs.S3FileSystem(use_listings_cache=False)
            fs.makedirs(_BUCKET, exist_ok=True)
            for name in sorted(other.keys() - wanted.keys()):
                if fs.exists(f"{_BUCKET}/source/{name}"):
                    fs.rm_file(f"{_BUCKET}/source/{name}")
            for name, data in wanted.items():
                fs.pipe_file(f"{_BUCKET}/source/{name}", data)
            return
        folder = self.folder / "source"
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.name not in wanted:
                path.unlink()
        for name, data in wanted.items():
            path = folder / name
            path.write_bytes(data)
            changed = _TIME_OF_CHANGE + (1 if other.get(name, data) != data and state else 0)
            os.utime(path, (changed, changed))

    def environment(self) -> dict[str, str]:
        """What a driver finds: Ray's files in our folder, and the store behind the proxy."""
        found = {
            **os.environ,
            "RAY_TMPDIR": str(self.folder / "ray"),
            "OMP_NUM_THREADS": "1",
            "SEGMILL_LOG_LEVEL": "ERROR",
            # As much of a busy machine as its driver: a starved worker is no fault to look for.
            "RAY_worker_niceness": "0",
        }
        if self.proxy is not None:
            found["AWS_ENDPOINT_URL"] = self.proxy.endpoint
            found["FSSPEC_S3"] = json.dumps({"config_kwargs": {"read_timeout": READ_TIMEOUT_S}})
        return found

    def command(
        self, output: str, log: Path, settings: Mapping[str, str | None], stages: Stages
    ) -> list[str]:
        """The command under test; an empty value is that of a switch, None one to leave out."""
        # A proposer that is described without a model library; the quick stages ask none.
        proposer = {"proposer": "felzenszwalb"} if stages == "quick" else {}
        chosen = {**SETTINGS, **proposer, **settings, "output": output}
        flags = [
            word
            for name, value in chosen.items()
            if value is not None
            for word in ([f"--{name}", value] if value else [f"--{name}"])
        ]
        return [
            sys.executable, "-m", "tests.chaos.driver", stages, str(log),
            "annotate", self.source, *flags,
        ]  # fmt: skip

    def reference(self, state: int, stages: Stages) -> dict[str, Row]:
        """Rows by the name of the image of an undisturbed run, which is made once."""
        if self.disk is not None:
            return self.disk.reference(state, stages)
        known = state, stages
        if known not in self._references:
            self.set_source(state)
            output = self.output(f"reference-{state}-{stages}")
            log = self.folder / f"reference-{state}-{stages}.log"
            subprocess.run(
                self.command(output, log, {}, stages),
                env=self.environment(), check=True, capture_output=True, timeout=600,
            )  # fmt: skip
            self._references[known] = rows_by_name(self, output)
        return self._references[known]


def rows_by_name(ground: Ground, output: str) -> dict[str, Row]:
    """All rows of the newest version, but for what tells where and by which run they were made."""
    rows = [row for table in read_rows(output, read_manifest(output)) for row in table.to_pylist()]
    found = {}
    for row in rows:
        name = PurePosixPath(row["uri"]).name
        if row["image_id"] != image_id(row["uri"]) or not row["uri"].endswith(
            f"{ground.source}/{name}"
        ):
            raise AssertionError(
                f"{row['uri']} is none of {ground.source}, or not {row['image_id']}"
            )
        found[name] = {key: value for key, value in row.items() if key not in _OF_ONE_RUN}
    if len(found) != len(rows):
        raise AssertionError(f"{len(rows)} rows of {len(found)} images in {output}")
    return found


def _png(index: int) -> bytes:
    picture = Image.fromarray(make_scene(SEED, index % 16).image_HW3).resize((SIDE, SIDE))
    picture.putpixel((index % SIDE, index // SIDE), (index, 0, random.Random(index).randrange(256)))
    buffer = BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()
