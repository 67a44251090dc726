"""Pictures of one class each, for training and checking the tiny CLIP.

They are cut from scenes: mostly cut-outs on the CLIP-mean backdrop (what region classification
will show), some with imperfect masks, some plain crops with context around.

Dimension key: N pictures, S side of the square CLIP input, H height, W width, 3 RGB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from colorsys import hsv_to_rgb, rgb_to_hsv
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.synthetic import COLOURS, NUM_THINGS, Scene, make_scene

T = TypeVar("T")

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NAMELESS_MARGIN = 18 / 360  # a hue nearer to a named one than this might be called by its name
MIN_PIXELS = 60  # regions with fewer visible pixels make no picture


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Square pictures (N, 3, S, S) uint8 and the class index (N,) each one shows.

    A recoloured picture shows the shape of its class in a colour that has no name.
    """

    images_N3SS: Tensor
    class_indices_N: NDArray[np.int64]
    is_recoloured_N: NDArray[np.bool_]

    def select(self, chosen_N: NDArray[np.bool_]) -> Pictures:
        """Return the pictures of a boolean mask."""
        return Pictures(
            self.images_N3SS[torch.from_numpy(chosen_N)],
            self.class_indices_N[chosen_N],
            self.is_recoloured_N[chosen_N],
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """The side of the pictures, and how many of each kind are cut from a region."""

    side: int = 48
    exact: int = 1  # by the true mask
    varied: int = 2  # by an imperfect mask, or a box with context
    recoloured: int = 0  # things only: varied, in colours without a name


def make_pictures(
    seed: int, count: int, cut: Cut, *, classes: Literal["all", "seen"] = "seen"
) -> Pictures:
    """Cut pictures from every region of the first `count` scenes of a seed."""
    make = partial(_scene_pictures, seed, classes=classes, cut=cut)
    images: list[NDArray[np.uint8]] = []
    shown: list[tuple[int, bool]] = []
    for scene_images, scene_shown in parallel_map(make, range(count)):
        images.extend(scene_images)
        shown.extend(scene_shown)
    class_indices, is_recoloured = zip(*shown, strict=True)
    return Pictures(
        torch.from_numpy(np.stack(images)),
        np.asarray(class_indices, np.int64),
        np.asarray(is_recoloured, np.bool_),
    )


def make_scenes(seed: int, count: int, *, classes: Literal["all", "seen"]) -> list[Scene]:
    """Return the first `count` scenes of a seed."""
    return list(parallel_map(partial(make_scene, seed, classes=classes), range(count)))


def parallel_map(make: Callable[[int], T], indices: Iterable[int]) -> Iterable[T]:
    """Apply `make` to every index in order, on one process per core."""
    # Forked children of a process that has run torch threads can hang, so they are spawned.
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        yield from pool.map(make, indices, chunksize=32)


def normalise(images_N3SS: Tensor) -> Tensor:
    """Return uint8 pictures as CLIP input: float, CLIP mean and deviation per channel."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (images_N3SS.float() / 255 - mean) / std


def _scene_pictures(
    seed: int, index: int, *, classes: Literal["all", "seen"], cut: Cut
) -> tuple[list[NDArray[np.uint8]], list[tuple[int, bool]]]:
    scene = make_scene(seed, index, classes=classes)
    # Its own stream: the pictures of a scene must not depend on how the scene was drawn.
    rng = np.random.default_rng([seed, index, 1])
    images: list[NDArray[np.uint8]] = []
    shown: list[tuple[int, bool]] = []
    for class_index in np.unique(scene.label_map_HW):
        mask_HW = scene.label_map_HW == class_index
        if mask_HW.sum() < MIN_PIXELS:
            continue
        images += [cut_out(scene.image_HW3, mask_HW, cut.side) for _ in range(cut.exact)]
        images += [_varied(rng, scene.image_HW3, mask_HW, cut.side) for _ in range(cut.varied)]
        shown += [(int(class_index), False)] * (cut.exact + cut.varied)
        if class_index < NUM_THINGS:
            for _ in range(cut.recoloured):
                image_HW3 = _recoloured(rng, scene.image_HW3, mask_HW)
                images.append(_varied(rng, image_HW3, mask_HW, cut.side))
                shown.append((int(class_index), True))
    return images, shown


def cut_out(
    image_HW3: NDArray[np.uint8],
    mask_HW: NDArray[np.bool_],
    side: int,
    box: tuple[int, int, int, int] | None = None,
) -> NDArray[np.uint8]:
    """Return (3, S, S): the box squashed to a square, CLIP-mean colour outside the mask.

    The box is half-open (x0, y0, x1, y1), by default the mask's own. Bicubic without antialias,
    as region classification resizes (spec 2.4), here rounded to uint8 for storage.
    """
    x0, y0, x1, y1 = box or _box(mask_HW)
    image = image_HW3[y0:y1, x0:x1].astype(np.float32)
    mask = mask_HW[y0:y1, x0:x1, None]
    blended = torch.from_numpy(np.where(mask, image, 255 * np.asarray(CLIP_MEAN, np.float32)))
    squashed = interpolate(blended.permute(2, 0, 1)[None], size=(side, side), mode="bicubic")[0]
    return np.asarray(squashed.clamp(0, 255).round().to(torch.uint8).numpy())


def _varied(
    rng: np.random.Generator,
    image_HW3: NDArray[np.uint8],
    mask_HW: NDArray[np.bool_],
    side: int,
) -> NDArray[np.uint8]:
    """Return a picture by an imperfect mask or, one time in four, of a box with its context."""
    if rng.random() < 0.25:
        return cut_out(image_HW3, np.ones_like(mask_HW), side, _jittered(rng, mask_HW))
    rough_HW = _roughened(rng, mask_HW)
    if rough_HW.sum() < MIN_PIXELS // 2:
        rough_HW = mask_HW
    return cut_out(image_HW3, rough_HW, side)


def _recoloured(
    rng: np.random.Generator, image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Return the image with a region in a colour without a name; its shading stays."""
    luma_N = image_HW3[mask_HW].mean(-1)
    shading_N = luma_N / max(1.0, float(luma_N.mean()))
    image_HW3 = image_HW3.copy()
    colour = 255 * np.asarray(_nameless_colour(rng))
    image_HW3[mask_HW] = np.clip(shading_N[:, None] * colour, 0, 255).astype(np.uint8)
    return image_HW3


def _nameless_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """Return RGB in [0, 1]: a grey, or a hue well between two of the named ones."""
    if rng.random() < 0.25:
        return hsv_to_rgb(float(rng.random()), float(rng.uniform(0, 0.12)), float(rng.random()))
    named = [rgb_to_hsv(*(value / 255 for value in colour))[0] for colour in COLOURS.values()]
    while True:
        hue = float(rng.random())
        if min(abs((hue - other + 0.5) % 1 - 0.5) for other in named) > NAMELESS_MARGIN:
            return hsv_to_rgb(hue, float(rng.uniform(0.4, 0.9)), float(rng.uniform(0.3, 1.0)))


def _roughened(rng: np.random.Generator, mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask as a stride-4 network would draw it: smooth, a little too small or large."""
    mask = torch.from_numpy(mask_HW).float()[None, None]
    height, width = mask_HW.shape
    stride = float(rng.uniform(3, 7))
    coarse = interpolate(mask, size=(int(height / stride), int(width / stride)), mode="area")
    coarse = coarse + 0.12 * torch.from_numpy(rng.standard_normal(coarse.shape)).float()
    smooth = interpolate(coarse, size=mask_HW.shape, mode="bilinear")[0, 0]
    return np.asarray((smooth > float(rng.uniform(0.3, 0.7))).numpy())


def _box(mask_HW: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask_HW)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def _jittered(rng: np.random.Generator, mask_HW: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the mask's box with every side moved by up to a fifth of its length."""
    height, width = mask_HW.shape
    x0, y0, x1, y1 = _box(mask_HW)
    left, top, right, bottom = rng.uniform(-0.08, 0.2, 4)
    dx, dy = x1 - x0, y1 - y0
    return (
        max(0, int(x0 - left * dx)),
        max(0, int(y0 - top * dy)),
        min(width, int(x1 + right * dx) + 1),
        min(height, int(y1 + bottom * dy) + 1),
    )
