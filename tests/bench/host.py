"""What an image costs the host beside the networks: pixels and masks that change hands.

    python -m tests.bench.host [images of a run] [rounds]

Photos of the sample data with their shorter side at 640, 100 masks of stride 4 in float16 for each.

`hand_over` is a batch of 32 images made into a table, as the proposer's actor does, and read from
it, as CLIP's does: ours, and by Arrow's own `Table.from_pylist` and scalars. `decode` is a photo in
the decoder's process, with memory kept from one to the next and without. Both are milliseconds an
image, medians over the rounds, one way after the other in each. `run` is a whole run through Ray
with pools of one actor, whose networks take no time: masks are drawn once, and copied where they
would go to a GPU.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from pipeline import decoder_process
from pipeline.decoder_process import Decoder
from pipeline.stages.rows import rows_of
from schemas.annotation import PROPOSED, table_from_rows
from tests.bench import engine, exact_path
from tests.bench.decoder import EXACT
from tests.bench.mask_stages import DIVISOR, CopyingClassify, RandomPropose
from tests.bench.scenes import write_copies

BATCH, CLASSIFY_BATCH, PHOTOS = 32, 16, 24

Ways = dict[str, Callable[[], Any]]


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]]
    images, rounds = counts + [800, 5][len(counts) :]
    decoded = exact_path.photos(PHOTOS)
    photos = [Path(uri).read_bytes() for uri in decoded["uri"].to_pylist()]
    figures = {"hand_over": compared(hand_over(decoded), BATCH, rounds)}
    figures["decode"] = compared(decode(photos), len(photos), rounds)
    figures["run"] = run(photos, images)
    print(json.dumps({"host": figures}))


def compared(ways: Ways, items: int, rounds: int) -> dict[str, float]:
    """Return milliseconds of an item, and the second way's over the first's."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first one warms up
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    ours, other = (values[1:] for values in seconds.values())
    found = {name: round(1000 * median(values[1:]) / items, 2) for name, values in seconds.items()}
    ratios = [second / first for first, second in zip(ours, other, strict=True)]
    return {**found, "ratio": round(median(ratios), 2)}


def hand_over(photos: pa.Table) -> Ways:
    batch = pa.concat_tables([photos, photos]).slice(0, BATCH).combine_chunks()
    proposed = RandomPropose("maskformer", None, DIVISOR, "float16")(batch)
    rows = rows_of(proposed)

    def by_arrow() -> list[pa.Buffer]:
        table = pa.Table.from_pylist(rows, schema=PROPOSED)
        return [value.as_buffer() for name in ("image", "mask_logits") for value in table[name]]

    return {"ours_ms": lambda: rows_of(table_from_rows(rows, PROPOSED)), "arrow_ms": by_arrow}


def decode(photos: list[bytes]) -> Ways:
    def every(decoder: Decoder) -> None:
        for photo in photos:
            decoder(photo)

    kept, plain = Decoder(EXACT), Decoder(EXACT)
    kept(photos[0])
    with patch.object(decoder_process, "_KEPT_MEMORY", {}):
        plain(photos[0])
    return {"kept_ms": partial(every, kept), "plain_ms": partial(every, plain)}


def run(photos: list[bytes], images: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="host-") as name:
        write_copies(Path(name) / "photos", photos, images)
        _, flow = engine.run(
            Path(name), RandomPropose, CopyingClassify, propose_actors=1, classify_actors=1,
            propose_batch=BATCH, classify_batch=CLASSIFY_BATCH, short_edge=EXACT.short_edge,
        )  # fmt: skip
    return {
        "images": images, "cores": os.cpu_count(), "images_per_s": round(flow.images_per_s, 1),
        "cpu_ms": {stage.name: round(1000 * stage.cpu_service_s, 2) for stage in flow.stages},
    }  # fmt: skip


if __name__ == "__main__":
    main()
