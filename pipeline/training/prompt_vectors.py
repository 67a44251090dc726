"""CLIP's vectors of all regions, computed once: the image tower is frozen (spec 3.2).

Every view that any step will meet is known before the first: it follows from the samples' seed, the
sample and the turn. So a vector is computed once for all seeds, and each image is decoded once for
all views of a region. Nothing is approximated by it, unless views_per_sample says so.

Dimension key: N samples, V views, D embedding, H W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.decode import BadImage
from pipeline.files import list_files, write_bytes
from pipeline.models.clip import Clip
from pipeline.models.clip_positions import input_size
from pipeline.models.crops import CropSettings, crop_regions
from pipeline.training import world
from pipeline.training.labelled_images import Pair
from pipeline.training.prompt_samples import VIEW, Sample
from pipeline.training.prompt_training import PromptTraining
from pipeline.training.region_views import Region, RegionInput
from schemas.errors import TrainingError

FOLDER: Final = "vectors"
LEARNED: Final = "samples"
HELD_OUT: Final = "held-out"

_PER_FILE: Final = 32  # samples

Floats = NDArray[np.float32]
Views = tuple[NDArray[np.uint8], NDArray[np.bool_]]  # pixels (V, H, W, 3), masks (V, H, W)
Piece = tuple[int, Sample, Sequence[int]]  # a sample's number, the sample, some of its views


def compute(training: PromptTraining, clip: Clip, say: Callable[[str], None]) -> None:
    """Write the vectors that are missing, this worker its share; return when all are there.

    Raises TrainingError, in all workers at once, when a file cannot be read any more or a vector
    is no number.
    """
    work = _Vectors(training, clip)
    written = set(list_files(training.output, FOLDER))
    missing = [file for file in files(training) if _path(*file) not in written]
    world.wait()  # or a slow worker would find what a quick one has written since
    for start in range(0, len(missing), world.size()):
        own = missing[start : start + world.size()][world.rank() : world.rank() + 1]
        problems = []
        try:
            for kind, number in own:
                work.write(kind, number)
        except TrainingError as error:
            problems.append(str(error))
        told = world.gathered(problems)
        if told:
            raise TrainingError("; ".join(told))
        say(f"image vectors {min(start + world.size(), len(missing))} of {len(missing)}")


def files(training: PromptTraining) -> list[tuple[str, int]]:
    """Return kind and number of every file of vectors."""
    kinds = ((LEARNED, training.samples), (HELD_OUT, training.held_out))
    return [
        (kind, number)
        for kind, samples in kinds
        for number in range((len(samples) + _PER_FILE - 1) // _PER_FILE)
    ]


class StoredVectors:
    """The vectors of samples, left on the disk; `[samples, views]` of equal length gives (B, D)."""

    def __init__(self, training: PromptTraining, kind: str) -> None:
        paths = [_path(*file) for file in files(training) if file[0] == kind]
        self._parts: list[Floats] = [
            np.load(f"{training.output}/{path}", mmap_mode="r", allow_pickle=False)
            for path in paths
        ]

    def __getitem__(self, at: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Floats:
        samples, views = at
        rows = [
            self._parts[sample // _PER_FILE][sample % _PER_FILE, view]
            for sample, view in zip(samples.tolist(), views.tolist(), strict=True)
        ]
        return np.stack(rows)

    def all(self) -> Floats:
        """Return the first view of every sample (N, D)."""
        return np.concatenate([np.asarray(part[:, 0]) for part in self._parts])


def _path(kind: str, number: int) -> str:
    return f"{FOLDER}/{kind}-{number:05d}.npy"


class _Vectors:
    def __init__(self, training: PromptTraining, clip: Clip) -> None:
        self._training = training
        self._config = training.config
        self._clip = clip
        self._size = training.input_size(clip.side)
        self._input = RegionInput(self._size, self._config.region_fill, clip.mean, clip.std)
        self._load = lru_cache(maxsize=4)(self._loaded)  # regions of one image come together

    def write(self, kind: str, number: int) -> None:
        """Compute one file of vectors (N, V, D), and write it whole."""
        samples = self._training.samples if kind == LEARNED else self._training.held_out
        start = number * _PER_FILE
        own = samples[start : start + _PER_FILE]
        try:
            vectors_NVD = self._learned(own, start) if kind == LEARNED else self._held_out(own)
        except (BadImage, ValueError) as error:
            raise TrainingError(f"a region cannot be cut out any more: {error}") from None
        finite = np.isfinite(vectors_NVD).all((1, 2))
        if not finite.all():
            sample = own[int(np.flatnonzero(~finite)[0])]
            raise TrainingError(
                f"CLIP's vector of a region of {sample.pair.image} is not finite; its weights may "
                "hold such numbers"
            )
        data = BytesIO()
        np.save(data, vectors_NVD)
        write_bytes(self._training.output, _path(kind, number), data.getvalue())

    def _held_out(self, samples: Sequence[Sample]) -> Floats:
        """Return vectors of regions cut as annotation cuts them (N, 1, D)."""
        crops = [self._crop(sample) for sample in samples]
        return self._encoded(torch.cat(crops))[:, None]

    def _crop(self, sample: Sample) -> Tensor:
        image, mask_HW = self._region(sample)
        cut = crop_regions(
            torch.from_numpy(np.array(image)).permute(2, 0, 1),
            torch.from_numpy(mask_HW)[None].float(),
            CropSettings(),
            side=self._clip.side,
            mean=self._clip.mean,
            std=self._clip.std,
        )
        return cut.crops_V3SS

    def _learned(self, samples: Sequence[Sample], start: int) -> Floats:
        """Return the vectors of all views (N, V, D), some views at a time."""
        views, at_once = self._training.num_views, self._config.image_batch
        pieces = [
            (start + index, sample, range(first, min(first + at_once, views)))
            for index, sample in enumerate(samples)
            for first in range(0, views, at_once)
        ]
        parts, per_pass = [], max(1, at_once // views)
        with (
            ThreadPoolExecutor(self._config.loader_threads) as pool,
            input_size(self._clip.model.visual, self._size),
        ):
            cut = self._cut(pool, pieces, self._config.loader_threads + per_pass)
            for pixels_VHW3, masks_VHW in _joined(cut, per_pass):
                parts.append(self._encoded(self._on_device(pixels_VHW3, masks_VHW)))
        return np.concatenate(parts).reshape(len(samples), views, -1)

    def _cut(self, pool: ThreadPoolExecutor, pieces: Sequence[Piece], most: int) -> Iterator[Views]:
        """Yield the views of pieces in their order, `most` of them at work or waiting at a time."""
        ahead: deque[Future[Views]] = deque()
        for piece in pieces:
            ahead.append(pool.submit(self._views, *piece))
            if len(ahead) == most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _on_device(self, pixels_VHW3: NDArray[np.uint8], masks_VHW: NDArray[np.bool_]) -> Tensor:
        device = self._clip.device
        return self._input(
            torch.from_numpy(pixels_VHW3).to(device), torch.from_numpy(masks_VHW).to(device)
        )

    def _encoded(self, input_N3HW: Tensor) -> Floats:
        input_N3HW = input_N3HW.to(self._clip.device)
        vectors: Floats = (
            self._clip.encode_crops(input_N3HW, self._config.image_batch).cpu().numpy()
        )
        return vectors

    def _views(self, index: int, sample: Sample, views: Sequence[int]) -> Views:
        """Return some views of a sample, which its number and theirs decide."""
        region = Region.of(*self._region(sample))
        found = [self._view(region, index, view) for view in views]
        pixels, masks = zip(*found, strict=True)
        return np.stack(pixels), np.stack(masks)

    def _view(self, region: Region, index: int, view: int) -> Views:
        if not self._config.augment:
            return region.view((0, 0, *region.image.size), self._size)
        rng = np.random.default_rng([self._config.sample_seed, VIEW, index, view])
        return region.random_view(rng, self._size)

    def _region(self, sample: Sample) -> tuple[Image.Image, NDArray[np.bool_]]:
        image, positions_HW = self._load(sample.pair)
        mask_HW = positions_HW == sample.position
        if not mask_HW.any():
            raise ValueError(f"{sample.pair.mask} shows seen class {sample.position} no more")
        return image, mask_HW

    def _loaded(self, pair: Pair) -> tuple[Image.Image, NDArray[np.int32]]:
        return self._training.data.load(pair)


def _joined(views: Iterator[Views], per_pass: int) -> Iterator[Views]:
    """Join the views of so many pieces."""
    held: list[Views] = []
    for found in views:
        held.append(found)
        if len(held) == per_pass:
            yield _stacked(held)
            held = []
    if held:
        yield _stacked(held)


def _stacked(views: Sequence[Views]) -> Views:
    pixels, masks = zip(*views, strict=True)
    return np.concatenate(pixels), np.concatenate(masks)
