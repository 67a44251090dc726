"""From the pixel embeddings of a per-pixel network to the score map (spec 1.1, 2.6, 2.7).

The paper's baseline does without proposals: every pixel of the original image is compared with the
text, and what CLIP adds is its view of the image as a whole, the same at every pixel.

Dimension key: D embedding, K class names, h w grid at stride 4, H W original pixels, T rows of a
tile, M rows before the last resize, P pixels of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.bilinear import RowTaps, bilinear_taps, resize_rows
from pipeline.fusion import LOGIT_SCALE, ScoreTile, fuse, region_probs, rows_per_tile
from pipeline.masks import Precision, pack_logits
from pipeline.resize import Size

_STRIDE: Final = 4
_LARGEST: Final = 8.0  # the range in which `pack_logits` is exact to its precision


def pack_pixels(embeds_Dhw: Tensor, precision: Precision) -> NDArray[Any]:
    """Return embeddings as an array of `precision`, scaled to [-8, 8].

    One factor for all of an image: cosines do not change, and no precision can overflow.
    """
    largest = embeds_Dhw.abs().max().clamp_min(1e-12)
    return pack_logits(embeds_Dhw * (_LARGEST / largest), precision)


@dataclass(frozen=True, eq=False)
class PixelScorer:
    """What turns embeddings into class scores.

    Text vectors have unit length. `clip_probs_1K` are CLIP's of the whole image; None: the
    network's own scores stand alone. Weight and seen flags are those of `fuse`.
    """

    text_KD: Tensor
    clip_probs_1K: Tensor | None
    seen_K: Tensor | None
    weight: float

    def scores(self, embeds_TWD: Tensor) -> Tensor:
        """Return fused class scores (K, T, W) of embeddings of any length."""
        embeds_PD = normalize(embeds_TWD.flatten(0, 1), dim=1)
        pixel_PK = region_probs(embeds_PD, self.text_KD, LOGIT_SCALE)
        num_pixels = len(pixel_PK)
        clip_PK = None if self.clip_probs_1K is None else self.clip_probs_1K.expand(num_pixels, -1)
        every_P = torch.ones(num_pixels, dtype=torch.bool, device=pixel_PK.device)
        fused_PK = fuse(pixel_PK, clip_PK, every_P, self.seen_K, self.weight)
        return fused_PK.T.reshape(-1, *embeds_TWD.shape[:2])


def pixel_score_tiles(
    embeds_Dhw: Tensor, scorer: PixelScorer, image_size: Size, size: Size
) -> Iterator[ScoreTile]:
    """Yield the score map of the original image of `size`, from top to bottom.

    Embeddings are resized bilinearly by 4, cropped to `image_size`, resized to `size`, and only
    then normalised and compared, as in the reference; neither D nor K values of all pixels are ever
    in memory. A pixel's evidence is 1, so that its score is the winner's own. Raises ValueError for
    a grid that does not cover the image.
    """
    num_dims, rows, columns = embeds_Dhw.shape
    if rows * _STRIDE < image_size[0] or columns * _STRIDE < image_size[1]:
        raise ValueError(f"a grid of {(rows, columns)} does not cover an image of {image_size}")
    (height, width), device = size, embeds_Dhw.device
    embeds_hwD = embeds_Dhw.permute(1, 2, 0).contiguous()
    down = RowTaps.of(rows, rows * _STRIDE), RowTaps.of(image_size[0], height)
    enlarging = bilinear_taps(columns, columns * _STRIDE, device)
    across = (
        [tap[: image_size[1]] for tap in enlarging],
        bilinear_taps(image_size[1], width, device),
    )
    per_row = 4 * (num_dims + len(scorer.text_KD)) * max(width, columns * _STRIDE)
    count = rows_per_tile(per_row, device)
    for top in range(0, height, count):
        tile = slice(top, min(top + count, height))
        needed = down[1].needed(tile)
        nodes_hwD = embeds_hwD[down[0].needed(needed)]
        embeds_MWD = resize_rows(nodes_hwD, down[0].within(needed), across[0])
        embeds_TWD = resize_rows(embeds_MWD, down[1].within(tile), across[1])
        yield ScoreTile(tile, scorer.scores(embeds_TWD), embeds_TWD.new_ones(embeds_TWD.shape[:2]))
