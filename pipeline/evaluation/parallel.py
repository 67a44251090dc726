"""Sums over many images in several processes, few of them in memory at a time."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, Final, Protocol, TypeVar

from pipeline.cores import cores
from schemas.errors import SegmillError

_CHUNKS_AHEAD: Final = 2  # per process: handed out or waiting to be added
_MANY: Final = 16  # chunks: below this, starting processes costs more than it gains


class Sum(Protocol):
    """A value that adds."""

    def __add__(self, other: Any, /) -> Any: ...


Item = TypeVar("Item")
Total = TypeVar("Total", bound=Sum)


def add_up(
    measure: Callable[[Sequence[Item]], Total],
    items: Iterable[Item],
    per_chunk: int,
    workers: int | None,
) -> Total:
    """Return the sum of `measure` over chunks of the items, in their order.

    `workers` None: as many processes as this one may use cores when there are many chunks, else
    none but this one. Processes are started afresh, not forked: a script that asks for them needs
    the usual `if __name__ == "__main__"`.
    """
    chunks = _chunks(items, per_chunk)
    if workers is None:
        first = list(islice(chunks, _MANY))
        workers = cores() if len(first) == _MANY else 1
        chunks = chain(first, chunks)
    results = map(measure, chunks) if workers == 1 else _in_processes(measure, chunks, workers)
    total = measure(())
    for part in results:
        total = total + part
    return total


def _in_processes(
    measure: Callable[[Sequence[Item]], Total], chunks: Iterator[Sequence[Item]], workers: int
) -> Iterator[Total]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        ahead: deque[Future[Total]] = deque()
        try:
            for chunk in chunks:
                ahead.append(pool.submit(measure, chunk))
                if len(ahead) >= _CHUNKS_AHEAD * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise SegmillError(
                "a process of this command was killed, out of memory perhaps; try fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _chunks(items: Iterable[Item], size: int) -> Iterator[Sequence[Item]]:
    iterator = iter(items)
    while chunk := tuple(islice(iterator, size)):
        yield chunk
