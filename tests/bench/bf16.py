"""Both networks in bf16 against fp32: the exact path of `tests.bench.exact_path`, end to end.

    python -m tests.bench.bf16 [images]

Its models, photos, masks and queries, one thread, CPU seconds. A CPU without bf16 units takes
several times as long in bf16 as in fp32.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.bench.exact_path import Bench, photos
from tests.bench.scenes import agreement


def main() -> None:
    images = int(sys.argv[1]) if sys.argv[1:] else 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        print(json.dumps({"bf16": figures(Bench(Path(folder), photos(images)))}))


def figures(bench: Bench) -> dict[str, Any]:
    """Return the ratio of CPU seconds, and the share of pixels that have one label in both."""
    seconds, maps = bench.exact.run(bench.images, replay=False)
    half_seconds, half_maps = bench.path("bf16").run(bench.images, replay=False)
    return {
        "images": len(bench.images),
        "fp32_s_per_image": bench.per_image(seconds),
        "bf16_s_per_image": bench.per_image(half_seconds),
        "bf16_speedup": round(seconds.total() / half_seconds.total(), 3),
        "bf16_agreement": agreement(maps, half_maps),
    }


if __name__ == "__main__":
    main()
