"""Errors on their way from workers to the driver: our own as they are, all others in one line."""

import logging

from pipeline.storage import describe
from schemas.errors import SegmillError

logger = logging.getLogger(__name__)


def cause(error: BaseException) -> SegmillError:
    """Return our own error from inside Ray's wrapping, or one that tells the wrapped error."""
    seen: BaseException | None = error
    last = error
    while seen is not None:
        if isinstance(seen, SegmillError):
            return _unwrapped(seen)
        last = seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    logger.warning("the run was cut short", exc_info=error)
    return told(last)


def told(error: BaseException) -> SegmillError:
    """Return our own errors as they are, and any other in one line."""
    if isinstance(error, SegmillError):
        return error
    return SegmillError(
        f"the run was cut short ({describe(error)}); what it finished is kept: run again to go on"
    )


def _unwrapped(error: SegmillError) -> SegmillError:
    """Return a plain error of the same kind: Ray's own mixes in a remote traceback."""
    inner = getattr(error, "cause", error)
    kind = next(base for base in type(inner).__mro__ if base.__module__ == SegmillError.__module__)
    plain: SegmillError = kind(str(inner.args[0]) if inner.args else "")
    return plain
