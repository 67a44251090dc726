"""`segmill drain`: let a machine that will be taken away finish what it has, and get nothing new.

Runs beside Ray on a spot machine and waits for the notice of its end; or, with `now`, is what a
machine's own shutdown calls.
"""

import logging
import time
from dataclasses import dataclass

from pipeline.draining import drain_this_machine
from pipeline.preemption import CLOUDS, Notice
from schemas.drain_config import DrainConfig
from schemas.errors import SettingsError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DrainResult:
    """Which node was drained, why, and how many seconds it had left."""

    node_id: str
    reason: str
    seconds: float


def drain(config: DrainConfig) -> DrainResult:
    """Wait for the notice and tell Ray; returns when Ray has taken it.

    Raises SettingsError where no metadata service answers at first, or no Ray runs here.
    """
    notice = Notice("drained by hand", None) if config.now else _await_notice(config)
    seconds = config.deadline_s if notice.seconds is None else notice.seconds
    node_id = drain_this_machine(config.address, notice.text, seconds)
    return DrainResult(node_id, notice.text, round(seconds, 1))


def _await_notice(config: DrainConfig) -> Notice:
    service = CLOUDS[config.cloud]
    has_answered = False
    while True:
        try:
            notice = service.notice(config.metadata_url)
        except (OSError, ValueError, KeyError) as error:
            if not has_answered:
                raise SettingsError(
                    f"the metadata service of {config.cloud} at "
                    f"{config.metadata_url or service.url} gives no answer ({error}); cloud is "
                    "aws or gcp, and must be that of this machine"
                ) from None
            logger.warning("the metadata service gave no answer: %s", error)
        else:
            has_answered = True
            if notice is not None:
                return notice
        time.sleep(config.poll_s)
