"""How many true regions the proposals of several proposers find, on images with label maps.

    python -m tests.bench.proposal_recall IMAGES MASKS VOCABULARY --ignore-label 11 \
        --proposer maskformer=run/proposer --proposer felzenszwalb

A true region is one class of an image (what the MaskFormer is taught), or one connected piece of
it. Each is compared with the proposal that fits it best, at the size that the proposer sees.
Prints per proposer the share found (IoU of at least 0.5) and the mean of the best IoU, of seen and
of unseen classes. Regions under 1/500 of the image are left out.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import label as connected

from pipeline.decode import decode_image
from pipeline.masks import mask_probs
from pipeline.models import find_proposer
from pipeline.resize import padded_size, resize_image, resize_nearest, resized_size
from pipeline.truth import Truths, read_label_map
from schemas.vocabulary import read_vocabulary

MIN_FRACTION = 1 / 500
FOUND = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("images", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--ignore-label", type=int, default=255)
    parser.add_argument("--proposer", action="append", required=True)
    parser.add_argument("--limit", type=int, help="so many images")
    options = parser.parse_args()
    seen = read_vocabulary(options.vocabulary).seen
    masks = Truths.find(str(options.masks))
    files = sorted(path for path in options.images.rglob("*") if path.is_file())[: options.limit]
    for given in options.proposer:
        name, _, weights = given.partition("=")
        figures = recall(name, weights or None, files, masks, seen, options.ignore_label)
        print(json.dumps({"proposer": given, "images": len(files), **figures}), flush=True)


def recall(name, weights, files, masks, seen, ignore_label):
    """Return the figures of one proposer."""
    entry = find_proposer(name)
    card, proposer = entry.describe(weights), entry.load(weights, "cpu")
    best, counts = defaultdict(list), []
    for file in files:
        image = decode_image(file.read_bytes(), 10**8, 1000).image
        size = resized_size((image.height, image.width), card.short_edge, card.long_edge)
        with torch.inference_mode():
            proposals = proposer.propose([resize_image(image, size)])[0]
            padded = padded_size(size, card.divisor)
            found_QP = mask_probs(proposals.mask_logits_Qhw.float(), padded, size) > 0.5
        found_QP = found_QP.flatten(1).float()
        counts.append(int(found_QP.any(1).sum()))
        truth_HW = resize_nearest(read_label_map(masks.of(str(file))), size)
        for kind, class_index, region_HW in regions(truth_HW, ignore_label):
            region_P = torch.from_numpy(region_HW).flatten().float()
            overlap_Q = found_QP @ region_P
            iou_Q = overlap_Q / (found_QP.sum(1) + region_P.sum() - overlap_Q)
            flag = "seen" if seen is None or seen[class_index] else "unseen"
            best[f"{kind} of {flag} classes"].append(float(iou_Q.max()))
    figures = {
        kind: {
            "regions": len(values),
            "recall": round(float(np.mean(np.asarray(values) >= FOUND)), 4),
            "mean_iou": round(float(np.mean(values)), 4),
        }
        for kind, values in sorted(best.items())
    }
    return {"proposals_per_image": round(float(np.mean(counts)), 1), **figures}


def regions(truth_HW, ignore_label):
    """Yield what kind, which class and which pixels, for whole classes and for their pieces."""
    least = MIN_FRACTION * truth_HW.size
    for class_index in np.unique(truth_HW):
        if class_index == ignore_label:
            continue
        whole_HW = truth_HW == class_index
        if whole_HW.sum() >= least:
            yield "classes", class_index, whole_HW
        pieces_HW, count = connected(whole_HW)
        for piece in range(1, count + 1):
            piece_HW = pieces_HW == piece
            if piece_HW.sum() >= least:
                yield "pieces", class_index, piece_HW


if __name__ == "__main__":
    main()
