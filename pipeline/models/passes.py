"""How many images go through a network at a time, and how many times a network works at once.

A GPU wants many. On a CPU memory decides: glibc gives back every piece of more than 32 MiB as soon
as it is free, and memory that is new to a process takes several times as long to fill as what it
has. A network of layers whose results are larger loses up to a fifth of its time. And cores that
share every layer wait for one another at its end, above all where another process takes time of
one; each with a pass of its own they do not (`tests/bench/passes.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from pipeline.models.device import pick_device
from pipeline.resize import Size

_MOST: Final = 256
_LAYER_BYTES: Final = 24 * 2**20
# Of the widest layers of proposers: 64 channels at stride 2, 256 at stride 4, as fp32.
_BYTES_PER_PIXEL: Final = 64
# Passes at once: each holds the results of its layers. Cores beyond them share passes.
_MOST_AT_ONCE: Final = 8
_BYTES_AT_ONCE: Final = 2 * 2**30
_HELD_PER_PIXEL: Final = 512  # of an image in an R101c MaskFormer, measured
# What is less than this part of a full pass is not worth reading all weights once more.
_LEAST_SHARE: Final = 8
# Cores that may be left over, as a part of all.
_IDLE_SHARE: Final = 8

Many = TypeVar("Many", Sequence[Any], Tensor)
Item = TypeVar("Item")
Result = TypeVar("Result")


def images_per_pass(size: Size) -> int:
    """Return how many images of a padded size go through a proposer at a time, here."""
    if pick_device() != "cpu":
        return _MOST
    return max(1, min(_MOST, _LAYER_BYTES // (size[0] * size[1] * _BYTES_PER_PIXEL)))


def crops_per_pass(network: nn.Module, crop_13SS: Tensor) -> int:
    """Return how many crops go through an image tower at a time; on a CPU it tries one."""
    if crop_13SS.device.type != "cpu":
        return _MOST
    return max(1, min(_MOST, _LAYER_BYTES // _widest_layer(network, crop_13SS)))


@torch.inference_mode()
def _widest_layer(network: nn.Module, crop_13SS: Tensor) -> int:
    """Return the bytes of the largest result of any layer for a crop."""
    sizes = [1]

    def note(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.nbytes)

    hooks = [layer.register_forward_hook(note) for layer in network.modules()]
    try:
        network(crop_13SS)
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)


def passes_at_once(device: torch.device | str, pass_bytes: int = 0) -> int:
    """Return how many passes a network makes at once at most, see `in_passes`.

    Each holds so many bytes, as far as it is known: together no more than 2 GiB.
    """
    if torch.device(device).type != "cpu":
        return 1
    fitting = _BYTES_AT_ONCE // max(1, pass_bytes)
    return _workers(torch.get_num_threads(), max(1, min(_MOST_AT_ONCE, fitting)))


def proposals_at_once(size: Size, images: int) -> int:
    """Return how many passes of `images` of a padded size a proposer makes at once at most."""
    return passes_at_once(pick_device(), images * size[0] * size[1] * _HELD_PER_PIXEL)


def in_passes(work: Callable[[Many], Result], whole: Many, most: int, at_once: int) -> list[Result]:
    """Apply `work` to all items, `most` or fewer at a time, and return its results in order.

    Up to `at_once` calls run side by side, in threads that share the caller's number of threads of
    torch and are in inference mode where it is. An error of any call is raised when all of its
    round have ended.
    """
    found: list[Result] = []
    start = 0
    for counts in rounds(len(whole), most, at_once):
        parts = []
        for count in counts:
            parts.append(whole[start : start + count])
            start += count
        found += _side_by_side(work, parts)
    return found


def rounds(images: int, most: int, at_once: int) -> Iterator[list[int]]:
    """Yield how many images go through each of the passes that are made at once.

    Those of a round are alike, or differ by one that hardly counts; images over follow in a round
    of fewer passes, which all cores share.
    """
    least = -(-most // _LEAST_SHARE)
    while images:
        passes = _workers(at_once, max(1, images // least))
        each = min(most, images // passes)
        over = images - passes * each
        if over < passes and _LEAST_SHARE <= each < most:
            yield [each + 1] * over + [each] * (passes - over)
            return
        yield [each] * passes
        images = over


def is_reentrant(network: nn.Module) -> bool:
    """Say whether threads may run a network side by side: hooks keep what belongs to one pass."""
    return not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )


def _workers(threads: int, most: int) -> int:
    """Return the largest number up to `most` that divides threads with hardly any over."""
    fitting = (
        number
        for number in range(1, min(threads, most) + 1)
        if threads % number * _IDLE_SHARE <= threads
    )
    return max(fitting)


def _side_by_side(work: Callable[[Item], Result], parts: Sequence[Item]) -> list[Result]:
    if len(parts) == 1:
        return [work(parts[0])]
    inference = torch.is_inference_mode_enabled()

    def in_thread(part: Item) -> Result:
        with torch.inference_mode(inference):
            return work(part)

    pool = _pool(len(parts), torch.get_num_threads() // len(parts))
    calls = [pool.submit(in_thread, part) for part in parts]
    wait(calls)
    return [call.result() for call in calls]


@cache
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """Return threads each of which has so many threads of torch."""
    before, all_started = torch.get_num_threads(), Barrier(workers)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pass")

    def start() -> None:
        # A thread takes the number that the process has now when it first asks, and keeps it
        # only after that; setting it also sets what threads take that are new to torch.
        torch.get_num_threads()
        torch.set_num_threads(threads)
        all_started.wait()

    try:
        wait([pool.submit(start) for _ in range(workers)])
    except RuntimeError:  # no more threads in this container: who has started need not wait
        all_started.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(before)
    return pool
