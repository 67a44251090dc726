"""How far the label map moves when mask logits travel between the pools in fewer bits.

    python -m tests.bench.mask_precision [images]

Runs propose and classify of the embedded models in this process, once per precision, on scenes of
the validation seed; compares the label maps with those of float32, pixel by pixel.
"""

import json
import sys
from dataclasses import replace

from pipeline.stages.propose import Propose
from pipeline.synthetic import VALIDATION_SEED
from tests.bench.scenes import agreement, decoded, embedded_classify, label_maps


def main() -> None:
    images = decoded(VALIDATION_SEED, int(sys.argv[1]) if len(sys.argv) > 1 else 60)
    classify = embedded_classify()
    maps, sizes = {}, {}
    for precision in ("float32", "float16", "uint8"):
        proposed = Propose("maskformer", None, classify.divisor, precision)(images)
        sizes[precision] = sum(map(len, proposed["mask_logits"].to_pylist())) / len(images)
        maps[precision] = label_maps(replace(classify, precision=precision), proposed)
    print(
        json.dumps(
            {
                "images": len(images),
                "bytes_per_image": {name: round(size) for name, size in sizes.items()},
                "agreement": {
                    name: agreement(maps["float32"], maps[name]) for name in ("float16", "uint8")
                },
            }
        )
    )


if __name__ == "__main__":
    main()
