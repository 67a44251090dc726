"""Any universal segmenter of transformers as a class-agnostic proposer.

MaskFormer, Mask2Former and OneFormer see the whole image, padded right and bottom as in training,
or stretched where the checkpoint's processor has a fixed size. EoMT has position embeddings of one
size and sees windows of it. The models' own classes are used for one thing, the objectness
1 - P(no object): only queries that the model is sure are nothing are dropped (CLIP has no such
class, and would name them), and the 100 best are kept. Dimension key: B images or windows,
Q queries or proposals, L the model's own classes, H W pixels, h w mask grid.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForUniversalSegmentation, AutoTokenizer

from pipeline.models import Proposals, Proposer, ProposerCard, ProposerEntry
from pipeline.models.pretrained import (
    Checkpoint,
    find_checkpoint,
    identity_of,
    licence_of,
    load_config,
    load_image_processor,
    load_model,
    load_part,
    preprocess,
)
from pipeline.resize import Size, padded_size
from schemas.errors import ModelError

_NAME: Final = "transformers"
_WHOLE: Final = ("mask2former", "maskformer", "oneformer")
_WINDOWED: Final = ("eomt", "eomt_dinov3")

_MAX_PROPOSALS: Final = 100
# Trained with one query per object, these models call most queries nothing with near certainty.
# An object outside their classes gets little objectness, but more than this.
_MIN_OBJECTNESS: Final = 0.05
_ONEFORMER_TASK: Final = "panoptic"  # one mask per object: what a crop for CLIP should hold
_DIVISOR: Final = 32  # where the processor names none
_LONG_PER_SHORT: Final = 4  # where the processor does not limit the longer side
# CLIP's crops come out of the same image, so a model with a small fixed size does not shrink it.
_MIN_SHORT_EDGE: Final = 640
_OUTSIDE_LOGIT: Final = -10.0  # of a mask beyond its window

Image = NDArray[np.uint8]


class WholeImage:
    """MaskFormer, Mask2Former and OneFormer: one forward pass for images of one padded size."""

    def __init__(self, model: Any, processor: Any, task_tokens_T: Tensor | None = None) -> None:
        self._model = model
        self._processor = processor
        self._task_tokens_T = task_tokens_T

    @torch.inference_mode()
    def propose(self, images: Sequence[Image]) -> list[Proposals]:
        """Return up to 100 proposals per RGB image (H, W, 3), best objectness first."""
        if not images:
            return []
        padded = _shared_padded_size(images, _divisor(self._processor))
        stretch = _fixed_size(self._processor) is not None
        task = {}
        if self._task_tokens_T is not None:
            task = {"task_inputs": [_ONEFORMER_TASK] * len(images)}
        inputs = preprocess(self._processor, images, do_resize=stretch, **task)
        pixels_B3HW, inside_BHW = inputs["pixel_values"], inputs["pixel_mask"]
        if not stretch:
            height, width = pixels_B3HW.shape[-2:]
            border = (0, padded[1] - width, 0, padded[0] - height)
            pixels_B3HW, inside_BHW = pad(pixels_B3HW, border), pad(inside_BHW, border)
        return self._forward(pixels_B3HW, inside_BHW)

    def _forward(self, pixels_B3HW: Tensor, inside_BHW: Tensor) -> list[Proposals]:
        device = self._model.device
        task = {}
        if self._task_tokens_T is not None:
            task = {"task_inputs": self._task_tokens_T.expand(len(pixels_B3HW), -1).to(device)}
        output = self._model(
            pixel_values=pixels_B3HW.to(device), pixel_mask=inside_BHW.to(device), **task
        )
        pairs = zip(output.masks_queries_logits, output.class_queries_logits, strict=True)
        return [best_proposals(*pair) for pair in pairs]


class Windows:
    """EoMT: square windows of its fixed size, overlapping where the image is longer than one.

    Windows start on the mask grid (a pixel or two from where the checkpoint's processor would cut
    a long image), so that masks are put in place without resampling. What no image covers is
    black, as in training.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model
        self._processor = processor
        self._side, self._stride = _window_geometry(model.config)

    @torch.inference_mode()
    def propose(self, images: Sequence[Image]) -> list[Proposals]:
        """Return up to 100 proposals per RGB image (H, W, 3), best objectness first."""
        if not images:
            return []
        padded = _shared_padded_size(images, self._side)
        places = [self._places((image.shape[0], image.shape[1])) for image in images]
        windows = []
        for image, corners in zip(images, places, strict=True):
            canvas_HW3 = np.zeros((*padded, 3), dtype=np.uint8)
            canvas_HW3[: image.shape[0], : image.shape[1]] = image
            windows += [
                canvas_HW3[top : top + self._side, left : left + self._side]
                for top, left in corners
            ]
        whole = {"do_resize": False, "do_split_image": False, "do_pad": False}
        inputs = preprocess(self._processor, windows, **whole)
        output = self._model(pixel_values=inputs["pixel_values"].to(self._model.device))
        counts = [len(corners) for corners in places]
        masks = torch.split(output.masks_queries_logits, counts)
        classes = torch.split(output.class_queries_logits, counts)
        return [self._joined(padded, *parts) for parts in zip(places, masks, classes, strict=True)]

    def _places(self, size: Size) -> list[tuple[int, int]]:
        tops, lefts = (window_starts(length, self._side, self._stride) for length in size)
        return [(top, left) for top in tops for left in lefts]

    def _joined(
        self,
        padded: Size,
        corners: Sequence[tuple[int, int]],
        masks_BQhw: Tensor,
        classes_BQL: Tensor,
    ) -> Proposals:
        """Return the proposals of one image's windows on the grid of the padded image."""
        cells = [length // self._stride for length in padded]
        grids = []
        for (top, left), masks_Qhw in zip(corners, masks_BQhw, strict=True):
            height, width = masks_Qhw.shape[-2:]
            y, x = top // self._stride, left // self._stride
            border = (x, cells[1] - width - x, y, cells[0] - height - y)
            grids.append(pad(masks_Qhw, border, value=_OUTSIDE_LOGIT))
        return best_proposals(torch.cat(grids), classes_BQL.flatten(0, 1))


def window_starts(length: int, side: int, stride: int) -> list[int]:
    """Return where windows of `side` start, evenly and on multiples of `stride`, to cover `length`.

    The last one may reach beyond the end by less than a stride.
    """
    count = ceil(length / side)
    if count == 1:
        return [0]
    step = (length - side) / (count - 1)
    return [ceil(int(index * step) / stride) * stride for index in range(count)]


def best_proposals(mask_logits_Qhw: Tensor, class_logits_QL: Tensor) -> Proposals:
    """Return the 100 queries of most objectness; the last class is "no object"."""
    objectness_Q = 1.0 - class_logits_QL.softmax(dim=-1)[:, -1]
    order_Q = objectness_Q.argsort(descending=True, stable=True)[:_MAX_PROPOSALS]
    return Proposals(mask_logits_Qhw[order_Q[objectness_Q[order_Q] > _MIN_OBJECTNESS]])


def _shared_padded_size(images: Sequence[Image], divisor: int) -> Size:
    padded = {padded_size((image.shape[0], image.shape[1]), divisor) for image in images}
    if len(padded) != 1:
        raise ValueError(f"images of one batch must share a padded size, got {sorted(padded)}")
    return padded.pop()


def _fixed_size(processor: Any) -> Size | None:
    """Return the size that the processor stretches every image to; None: it keeps proportions."""
    size = processor.size
    return (size.height, size.width) if size.height and size.width else None


def _divisor(processor: Any) -> int:
    # A stretched image needs no padding: the grid then covers exactly the image.
    if _fixed_size(processor):
        return 1
    return int(getattr(processor, "size_divisor", None) or _DIVISOR)


def _window_geometry(config: Any) -> tuple[int, int]:
    """Return the side of a window and the stride of its mask grid, in pixels."""
    side, patch = config.image_size, config.patch_size
    stride = patch >> config.num_upscale_blocks if isinstance(patch, int) else 0
    if not isinstance(side, int) or stride < 1 or side % patch:
        raise ModelError(
            f"an EoMT of image size {side}, patch size {patch} and {config.num_upscale_blocks} "
            "upscalings cannot be used: windows must be square and whole patches"
        )
    return side, stride


def _edges(processor: Any, checkpoint: Checkpoint) -> tuple[int, int]:
    """Return the short and long edge of the images that the proposer asks for."""
    fixed, size = _fixed_size(processor), processor.size
    if fixed:
        short = max(*fixed, _MIN_SHORT_EDGE)
        return short, short * _LONG_PER_SHORT
    if not size.shortest_edge:
        raise ModelError(
            f"the image processor of {checkpoint.name} has size {dict(size)}; "
            "a shortest_edge, or a height and a width, is needed"
        )
    return size.shortest_edge, size.longest_edge or size.shortest_edge * _LONG_PER_SHORT


def _processor(checkpoint: Checkpoint, config: Any) -> Any:
    # OneFormer's would fetch a list of class names that only its own label maps need.
    overrides = {"class_info_file": None} if config.model_type == "oneformer" else {}
    return load_image_processor(checkpoint, **overrides)


def _describe(weights: str | None) -> ProposerCard:
    checkpoint = find_checkpoint(weights, _NAME)
    config = load_config(checkpoint, _NAME, _WHOLE + _WINDOWED)
    processor = _processor(checkpoint, config)
    short_edge, long_edge = _edges(processor, checkpoint)
    windowed = config.model_type in _WINDOWED
    return ProposerCard(
        short_edge=short_edge,
        long_edge=long_edge,
        divisor=_window_geometry(config)[0] if windowed else _divisor(processor),
        embedding_dim=None,
        weights_sha256=identity_of(checkpoint),
        licence=licence_of(checkpoint),
    )


def _load(weights: str | None, device: str) -> Proposer:
    checkpoint = find_checkpoint(weights, _NAME)
    config = load_config(checkpoint, _NAME, _WHOLE + _WINDOWED)
    processor = _processor(checkpoint, config)
    model = load_model(checkpoint, AutoModelForUniversalSegmentation, device)
    if config.model_type in _WINDOWED:
        return Windows(model, processor)
    if config.model_type == "oneformer":
        return WholeImage(model, processor, _task_tokens(checkpoint, config.task_seq_len))
    return WholeImage(model, processor)


def _task_tokens(checkpoint: Checkpoint, length: int) -> Tensor:
    """Return the task as OneFormer reads it; transformers makes a tokenizer even from no file."""
    tokenizer = load_part(checkpoint, AutoTokenizer, "tokenizer")
    task = f"the task is {_ONEFORMER_TASK}"
    tokens = tokenizer(
        task, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    read = tokenizer.decode(tokens["input_ids"][0], skip_special_tokens=True).strip()
    if read != task:
        raise ModelError(f"the tokenizer of {checkpoint.name} reads {task!r} as {read!r}")
    tokens_1T: Tensor = tokens["input_ids"] * tokens["attention_mask"]  # padding is 0
    return tokens_1T[0]


UNIVERSAL_SEGMENTER: Final = ProposerEntry(
    summary="any MaskFormer, Mask2Former, OneFormer or EoMT of transformers (needs weights)",
    describe=_describe,
    load=_load,
    lower=lambda proposer, dtype: None,  # as it is
)
