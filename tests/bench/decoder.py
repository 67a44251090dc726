"""What decoding in a process of its own costs, and what draft JPEGs gain and lose.

    python -m tests.bench.decoder [folder of JPEG photos]

Each photo is decoded and resized as the paper does (640, 2560) in turn in this process and in the
decoder process, so that the load of the machine meets both. Needs the sample data beside the
checkout, unless a folder is given.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.decode import DecodeSettings, Picture, decode_resized
from pipeline.decoder_process import Decoder

EXACT = DecodeSettings(640, 2560, 10**8, 1000, 60.0, 2048, False)
ROUNDS = 5


def main() -> None:
    default = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    photos = [path.read_bytes() for path in sorted(folder.glob("*.JPEG"))]
    print(json.dumps({"photos": len(photos), **overhead(photos), "draft": draft(photos)}))


def overhead(photos: list[bytes]) -> dict[str, float]:
    """Return the median over rounds of seconds in the decoder process over seconds in this one."""
    ratios, process = [], Decoder(EXACT)
    process(photos[0])
    for _ in range(ROUNDS):
        here = there = 0.0
        for photo in photos:
            here += seconds(lambda data: decode_resized(data, EXACT), photo)
            there += seconds(process, photo)
        ratios.append(there / here)
    process.close()
    return {
        "process_to_inline": round(float(np.median(ratios)), 3),
        "inline_ms": round(1000 * here / len(photos), 2),
    }


def seconds(work: Callable[[bytes], Picture], data: bytes) -> float:
    started = time.perf_counter()
    work(data)
    return time.perf_counter() - started


def draft(photos: list[bytes]) -> dict[str, dict[str, float]]:
    """Compare draft with exact decoding where the result is 1/2, 1/4 and 1/8 of a photo and less.

    Differences are in levels of 255 after the resize, over all pixels of all photos.
    """
    figures = {}
    for name, shrink in (("photos / 4", 4), ("photos / 8", 8)):
        most = mean = count = 0.0
        exact_s = draft_s = 0.0
        for photo in photos:
            short = max(16, min(Image.open(BytesIO(photo)).size) // shrink)
            exact = replace(EXACT, short_edge=short, long_edge=4 * short)
            quick = replace(exact, jpeg_draft=True)
            exact_s += seconds(lambda data, s=exact: decode_resized(data, s), photo)
            draft_s += seconds(lambda data, s=quick: decode_resized(data, s), photo)
            one, two = (decode_resized(photo, s).pixels_HW3.astype(int) for s in (exact, quick))
            difference = np.abs(one - two)
            most = max(most, int(difference.max()))
            mean += int(difference.sum())
            count += difference.size
        figures[name] = {
            "largest": most, "mean": round(mean / count, 3), "seconds": round(draft_s / exact_s, 3)
        }  # fmt: skip
    return figures


if __name__ == "__main__":
    main()
