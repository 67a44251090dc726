"""Which images keep the pseudo labels of a class, where a class may have them in so many only."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field


@dataclass
class ClassCap:
    """Keeps, of every class, the `limit` images of the best score; all where there is no limit.

    Equal scores are told apart by the image's name, so the choice does not depend on the order in
    which images arrive. Memory does not grow with the images: `limit` names for each class.
    """

    limit: int | None
    _best: dict[int, list[tuple[float, str]]] = field(default_factory=dict, init=False)

    def add(self, class_index: int, score: float, name: str) -> None:
        """Let an image compete, once."""
        if self.limit is None:
            return
        best = self._best.setdefault(class_index, [])
        if len(best) < self.limit:
            heapq.heappush(best, (score, name))
        else:
            heapq.heappushpop(best, (score, name))

    def keeps(self, class_index: int, score: float, name: str) -> bool:
        """Return whether an image that competed is chosen; to be asked once all have competed."""
        return self.limit is None or (score, name) >= self._best[class_index][0]
