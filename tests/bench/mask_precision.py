"""How far the label map moves when mask logits travel between the pools in fewer bits.

    python -m tests.bench.mask_precision [images]

Runs propose and classify of the embedded models in this process, once per precision, on scenes of
the validation seed; compares the label maps with those of float32, pixel by pixel.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.models import find_proposer
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crops import CropSettings
from pipeline.prompts import SINGLE, text_classifier
from pipeline.resize import resize_image, resized_size
from pipeline.segments import decode_label_map
from pipeline.stages.classify import Classify
from pipeline.stages.propose import Propose
from pipeline.synthetic import VALIDATION_SEED, class_names, make_scene, seen_flags
from schemas.annotation import DECODED, LABELLED, table_from_rows
from schemas.vocabulary import Vocabulary


def main() -> None:
    images = decoded(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
    card = find_proposer("maskformer").describe(None)
    source = ClipSource.of("embedded", None)
    text_KD = text_classifier(Clip.load(source).encode_text, Vocabulary.of(class_names()), SINGLE)
    classify = Classify(
        classifier="crops", clip=source, crops=CropSettings(), crop_batch=256,
        names=class_names(), seen=seen_flags(),
        query_text_KD=text_KD, region_text_KD=text_KD, logit_scale=100.0, ensemble=True,
        ensemble_weight=0.8, keep_invalid=True, oracle_truth=None, min_score=0.0,
        divisor=card.divisor, precision="float32", fingerprint="", run_id="",
    )  # fmt: skip
    maps, sizes = {}, {}
    for precision in ("float32", "float16", "uint8"):
        proposed = Propose("maskformer", None, card.divisor, precision)(images)
        sizes[precision] = sum(map(len, proposed["mask_logits"].to_pylist())) / len(images)
        rows = replace(classify, precision=precision)(proposed).to_pylist()
        maps[precision] = [
            decode_label_map(row["segments"], (row["height"], row["width"])) for row in rows
        ]
    pixels = sum(label_map.size for label_map in maps["float32"])
    print(
        json.dumps(
            {
                "images": len(images),
                "bytes_per_image": {name: round(size) for name, size in sizes.items()},
                "agreement": {
                    name: sum(
                        int(np.sum(one == other))
                        for one, other in zip(maps["float32"], maps[name], strict=True)
                    )
                    / pixels
                    for name in ("float16", "uint8")
                },
            }
        )
    )


def decoded(count: int) -> pa.Table:
    """The DECODED rows of validation scenes, as the fetch stage would make them."""
    from PIL import Image

    card = find_proposer("maskformer").describe(None)
    rows = []
    for index in range(count):
        picture = make_scene(VALIDATION_SEED, index).image_HW3
        height, width = picture.shape[:2]
        size = resized_size((height, width), card.short_edge, card.long_edge)
        rows.append(
            {
                "image_id": str(index), "uri": str(index), "height": height, "width": width,
                "status": LABELLED, "image_height": size[0], "image_width": size[1],
                "image": resize_image(Image.fromarray(picture), size).tobytes(),
            }
        )  # fmt: skip
    return table_from_rows(rows, DECODED)


if __name__ == "__main__":
    main()
