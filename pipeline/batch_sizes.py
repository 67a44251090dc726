"""Images per call of a pool's network, from what calls of several sizes took."""

from collections.abc import Mapping
from typing import Final

# On a GPU a call of one image takes nearly as long as one of several; from 8 images on little is
# gained, and every one of a batch takes megabytes on its way.
USUAL: Final = 8
TRIED: Final = (8, 16, 32)
_WORTH: Final = 1.05  # a larger batch has to be faster by this much


def batch_size(service_s: Mapping[int, float]) -> int:
    """Return the smallest size that is nearly as fast as any, of seconds per image by size."""
    fastest = min(service_s.values())
    return min(size for size, seconds in service_s.items() if seconds <= fastest * _WORTH)
