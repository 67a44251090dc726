"""The images most worth a person's time: doubtful segments, of rare classes, of many classes.

Each image adds its doubt to its classes; the queue maximises the sum over classes k of

    sqrt(doubt of k in the queue) / sqrt(segments of k in the dataset)

Square roots make the tenth doubtful segment of a class worth less than the first (diversity), and
a class of few segments worth more (rarity). The sum is submodular, so that taking the best image
again and again reaches at least 1 - 1/e of the optimum (Nemhauser et al. 1978). Ties go to the
smaller image_id, so that a queue depends on the rows alone.

Dimension key: I images, S segments.
"""

import hashlib
import heapq
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

COLUMNS = (
    "image_id", "status", "annotator", "segments.list.element.class_index",
    "segments.list.element.margin", "segments.list.element.disagreement",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Candidates:
    """The images of a version in order of their ids, and the doubt of their segments."""

    image_ids: pa.StringArray
    images_S: NDArray[np.int64]  # ascending
    classes_S: NDArray[np.int32]
    doubts_S: NDArray[np.float64]

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> "Candidates":
        """Take rows of COLUMNS that a model has labelled.

        The doubt of a segment is the mean of 1 - margin and of the disagreement of its heads, or
        the first alone where only one head spoke.
        """
        ids, lengths, classes, doubts = [], [], [], []
        for table in tables:
            segments = table["segments"].combine_chunks()
            fields = segments.flatten()
            doubt = 1 - fields.field("margin").to_numpy(zero_copy_only=False).astype(np.float64)
            disagreement = fields.field("disagreement").to_numpy(zero_copy_only=False)
            ids.append(table["image_id"].combine_chunks())
            lengths.append(pc.list_value_length(segments).to_numpy(zero_copy_only=False))
            classes.append(fields.field("class_index").to_numpy())
            doubts.append(np.where(np.isnan(disagreement), doubt, (doubt + disagreement) / 2))
        if not ids:
            return cls(
                pa.array([], pa.string()), np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0)
            )
        names = pa.concat_arrays(ids)
        sorted_I = pc.sort_indices(names)
        rank_I = np.empty(len(names), np.int64)
        rank_I[sorted_I.to_numpy()] = np.arange(len(names))
        images_S = np.repeat(rank_I, np.concatenate(lengths))
        order = np.argsort(images_S, kind="stable")
        return cls(
            names.take(sorted_I),
            images_S[order],
            np.concatenate(classes)[order],
            np.nan_to_num(np.concatenate(doubts)[order]),
        )


def random_images(candidates: Candidates, count: int, seed: int) -> list[str]:
    """Return that many images, each as likely as any other; the same ones of the same ids."""

    def drawn(image_id: str) -> bytes:
        return hashlib.blake2b(f"review/{seed}/{image_id}".encode(), digest_size=16).digest()

    names = (image_id.as_py() for image_id in candidates.image_ids)
    return heapq.nsmallest(count, names, key=drawn)


def worthy_images(candidates: Candidates, count: int, without: Collection[str] = ()) -> list[str]:
    """Return at most that many images, the most worthy first; those without doubt never."""
    gain = _Gain(candidates)
    first_I = gain.at_first()
    left_out = pa.array(list(without), pa.string())
    first_I[pc.is_in(candidates.image_ids, left_out).to_numpy(zero_copy_only=False)] = 0
    order = np.argsort(-first_I, kind="stable")
    order = order[first_I[order] > 0]
    chosen: list[str] = []
    heap: list[tuple[float, int]] = []
    arrived = 0
    # Gains only fall, so what an image was worth at first bounds what it is worth later.
    while len(chosen) < count:
        while arrived < len(order) and (not heap or -heap[0][0] <= first_I[order[arrived]]):
            image = int(order[arrived])
            heapq.heappush(heap, (-gain.of(image), image))
            arrived += 1
        if not heap:
            break
        worth, image = heapq.heappop(heap)
        now = -gain.of(image)
        if now > worth:
            heapq.heappush(heap, (now, image))
            continue
        gain.take(image)
        chosen.append(candidates.image_ids[image].as_py())
    return chosen


class _Gain:
    """What an image adds to the sum."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        images_I = np.arange(len(candidates.image_ids) + 1)
        self._first_I = np.searchsorted(candidates.images_S, images_I)
        counts_K = np.bincount(candidates.classes_S)
        self._rarity_K = 1 / np.sqrt(np.maximum(counts_K, 1))
        self._doubt_K = np.zeros(len(counts_K))

    def at_first(self) -> NDArray[np.float64]:
        """Return what each image (I,) adds to an empty queue; a class has one segment of it."""
        found = self._candidates
        worth_S = self._rarity_K[found.classes_S] * np.sqrt(found.doubts_S)
        return np.bincount(found.images_S, worth_S, len(found.image_ids)).astype(np.float64)

    def of(self, image: int) -> float:
        """Return what an image adds now."""
        classes, doubts = self._segments(image)
        before = self._doubt_K[classes]
        steps = np.sqrt(before + doubts) - np.sqrt(before)
        return float((self._rarity_K[classes] * steps).sum())

    def take(self, image: int) -> None:
        """Add an image to the queue."""
        classes, doubts = self._segments(image)
        self._doubt_K[classes] += doubts

    def _segments(self, image: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        part = slice(self._first_I[image], self._first_I[image + 1])
        return self._candidates.classes_S[part], self._candidates.doubts_S[part]
