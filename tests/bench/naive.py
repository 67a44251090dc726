"""What a user would write instead of Segmill: the same models in a plain Ray Data script.

    python -m tests.bench.naive PHOTOS OUTPUT CLIP_WEIGHTS CLASSES SHORT_EDGE

No resume, no quarantine, no publication; an image that does not decode ends it.
"""

import os
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import ray
import torch
from PIL import Image
from torch.nn.functional import interpolate, normalize

from pipeline.models.contours import Contours

PHOTOS, OUTPUT, CLIP, CLASSES, SHORT_EDGE = *sys.argv[1:5], int(sys.argv[5])


class Label:
    def __init__(self) -> None:
        torch.set_num_threads(os.cpu_count())  # Ray gives an actor one
        names = Path(CLASSES).read_text().split("\n")
        self.proposer = Contours()
        self.clip, _, self.prepare = open_clip.create_model_and_transforms("ViT-B-32", CLIP)
        tokens = open_clip.get_tokenizer("ViT-B-32")([f"a photo of a {name}." for name in names])
        with torch.inference_mode():
            self.text = normalize(self.clip.eval().encode_text(tokens), dim=1)

    @torch.inference_mode()
    def __call__(self, row: dict) -> dict:  # type: ignore[type-arg]
        image = Image.fromarray(row["image"]).convert("RGB")
        scale = SHORT_EDGE / min(image.size)
        small = image.resize(
            [round(side * scale) for side in image.size], Image.Resampling.BILINEAR
        )
        pixels = np.asarray(small)
        height, width = pixels.shape[:2]
        logits = self.proposer.propose([pixels])[0].mask_logits_Qhw
        masks = interpolate(logits[None], (height, width), mode="bilinear")[0].sigmoid()
        masks = masks[(masks > 0.5).flatten(1).any(dim=1)]
        crops = []
        for mask in (masks > 0.5).numpy():
            rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
            filled = np.where(mask[..., None], pixels, np.uint8([122, 116, 104]))
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            crops.append(self.prepare(Image.fromarray(filled).crop(box)))
        embeds = normalize(self.clip.encode_image(torch.stack(crops)), dim=1)
        scores = (100 * embeds @ self.text.T).softmax(dim=1)
        summed = torch.einsum("qk,qhw->khw", scores, masks)
        labels = interpolate(summed[None], image.size[::-1], mode="bilinear")[0].argmax(dim=0)
        png = BytesIO()
        Image.fromarray(labels.to(torch.uint8).numpy()).save(png, "png")
        return {"path": row["path"], "labels": png.getvalue()}


# Without a mode a grey photo among the others ends the script at its batch.
images = ray.data.read_images(PHOTOS, include_paths=True, mode="RGB")
images.map(Label, concurrency=1).write_parquet(OUTPUT)
