"""Photos from a store that answers late: decoding while the next ones are read, or after it.

    python -m tests.bench.read_ahead [photos]

One task's share of a run: a web server on this machine, in a process of its own, answers every
request after `LATENCY_S`, as object stores do; the photos are fetched and decoded for the proposer.
"""

import asyncio
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pyarrow as pa
from aiohttp import web

from pipeline.stages.fetch import FetchDecode
from pipeline.stages.rows import slices
from schemas.annotate_config import SourceSettings
from schemas.annotation import INVENTORY, image_id, table_from_rows
from tests.bench.scenes import photo_files

LATENCY_S = 0.06
SHORT_EDGE, LONG_EDGE = 640, 2560
ROWS = 8  # of a table, as they are made for this size
ROUNDS = 3


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 192
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    theirs.close()  # so that a server that does not start ends this, too
    port = ours.recv()
    urls = [f"http://127.0.0.1:{port}/{index}.jpg" for index in range(count)]
    stage = FetchDecode(SHORT_EDGE, LONG_EDGE, SourceSettings(allow_private_addresses=True))
    listed = table_from_rows([{"image_id": image_id(url), "uri": url} for url in urls], INVENTORY)
    ways: dict[str, Callable[[], Iterator[pa.Table]]] = {
        "eight_then_decode": lambda: map(stage, slices(listed, ROWS)),
        "ahead": lambda: stage.each(listed),
    }
    list(ways["ahead"]())  # starts the decoder, opens connections
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            rates[name].append(count / seconds(way()))
    medians = {name: sorted(found)[ROUNDS // 2] for name, found in rates.items()}
    figures = {
        "images_per_s": {name: round(rate, 1) for name, rate in medians.items()},
        "read_ahead_speedup": round(medians["ahead"] / medians["eight_then_decode"], 2),
        "latency_s": LATENCY_S,
        "photos": count,
    }
    print(json.dumps({"read_ahead": figures}))


def seconds(tables: Iterator[pa.Table]) -> float:
    """Return what it takes to decode all; raises where an image does not come."""
    started = time.perf_counter()
    for table in tables:
        assert table["error"].null_count == len(table)
    return time.perf_counter() - started


def serve(announce: "Connection[str, int]") -> None:
    """Serve photos, each answer late, on a port that is announced."""
    files = [path.read_bytes() for path in photo_files(needed=True)]

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(LATENCY_S)
        index = int(request.path.strip("/").partition(".")[0])
        return web.Response(body=files[index % len(files)])

    async def run() -> None:
        application = web.Application()
        application.router.add_get("/{name}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        announce.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
