"""What a run leaves of itself in _runs/<run_id>/, beside its settings and its log.

A run that was killed has a start and no end: whoever finds one knows it by the lock, which is no
longer its own or no longer renewed.
"""

from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from schemas.meter import RunMeter

Outcome = Literal["published", "unchanged", "failed", "interrupted"]

ANNOTATE: Final = "annotate"  # the one command that brings a dataset up to date with its source


class _Record(BaseModel):
    # Later versions of Segmill may tell more; a monitor of today reads on.
    model_config = ConfigDict(frozen=True, extra="ignore")


class RunStart(_Record):
    """What a run found to do, written before it does any of it."""

    run_id: str
    command: str = ANNOTATE
    started: datetime
    images: int  # of the source
    to_do: int  # of those, not done by any run before


class RunEnd(_Record):
    """How a run ended; one that found nothing to do has no other record."""

    run_id: str
    command: str = ANNOTATE
    started: datetime
    ended: datetime
    outcome: Outcome
    version: int  # the newest one, as the run left it; 0 when there is none
    error: str | None = None  # one line, without secrets
    meter: RunMeter | None = None  # of a run that did images
