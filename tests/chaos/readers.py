"""Readers who look at a dataset all the time and must see nothing but whole versions.

They read the store directly and use nothing of the code that writes it.
"""

import hashlib
import json
import random
import threading
from io import BytesIO
from typing import Any, Final, Self

import fsspec
import pyarrow.parquet as pq

_PAUSE_S: Final = 0.2


class Reader:
    """Reads the newest version, and now and then an older one, until it leaves the context."""

    def __init__(self, output: str, seed: int) -> None:
        self.torn: list[str] = []
        self.reads = 0
        protocol = "s3" if output.startswith("s3://") else "file"
        options = {"use_listings_cache": False} if protocol == "s3" else {}
        self._fs = fsspec.filesystem(protocol, **options)
        self._root = output.removeprefix("s3://")
        self._rng = random.Random(seed)
        self._newest = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            try:
                self._look()
            except Exception as error:  # whatever it is, a reader must not see it
                self.torn.append(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        try:
            found = self._fs.ls(f"{self._root}/_manifest", detail=False, refresh=True)
        except FileNotFoundError:
            found = []
        names = [name.rpartition("/")[2] for name in found if name.endswith(".json")]
        numbers = sorted(int(name[1:-5]) for name in names)
        if numbers != list(range(1, len(numbers) + 1)) or len(numbers) < self._newest:
            self.torn.append(f"after version {self._newest} there are {numbers}")
        if not numbers:
            return
        self._newest = numbers[-1]
        number = self._newest if self._rng.random() < 0.7 else self._rng.choice(numbers)
        self.torn += [f"version {number}: {what}" for what in self._problems(number)]
        self.reads += 1

    def _problems(self, number: int) -> list[str]:
        manifest: dict[str, Any] = json.loads(self._read(f"_manifest/v{number:06d}.json"))
        counts = manifest["counts"]
        problems, ids, statuses = [], [], []
        for file in [*manifest["images"], *manifest["embeddings"]]:
            data = self._read(file["path"])
            if hashlib.sha256(data).hexdigest() != file["sha256"]:
                problems.append(f"{file['path']} is not what the manifest says")
                continue
            table = pq.read_table(BytesIO(data), columns=["image_id", "status"])
            if len(table) != file["rows"]:
                problems.append(f"{file['path']} has {len(table)} rows")
            if file in manifest["images"]:
                ids += table["image_id"].to_pylist()
                statuses += table["status"].to_pylist()
        if len(set(ids)) != len(ids):
            problems.append(f"{len(ids)} rows of {len(set(ids))} images")
        seen = [len(ids), statuses.count("labelled"), statuses.count("quarantined")]
        told = [counts["inventory"], counts["labelled"], counts["quarantined"]]
        if seen != told:
            problems.append(f"{seen} rows, labelled and quarantined; the manifest tells {told}")
        return problems

    def _read(self, path: str) -> bytes:
        data: bytes = self._fs.cat_file(f"{self._root}/{path}")
        return data
