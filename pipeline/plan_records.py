"""The record of the newest plan of a dataset, and how a run compares with it."""

import logging
from typing import Final

from pydantic import ValidationError

from pipeline.files import read_bytes, write_bytes
from pipeline.parts import RUNS
from schemas.meter import PlanCheck, RunMeter
from schemas.plan import PlanRecord

_PATH: Final = f"{RUNS}/plan.json"  # nothing that a reader of versions or a run looks at

logger = logging.getLogger(__name__)


def write_plan(dataset: str, record: PlanRecord) -> None:
    """Write the plan in place of an older one."""
    write_bytes(dataset, _PATH, record.model_dump_json(indent=2).encode())


def read_plan(dataset: str) -> PlanRecord | None:
    """Return the newest plan; None where there is none that can be read."""
    try:
        return PlanRecord.model_validate_json(read_bytes(dataset, _PATH))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        logger.warning("passed over the plan: %s", error)
        return None


def check_plan(
    record: PlanRecord | None, meter: RunMeter, fingerprint: str, keep_embeddings: str | None
) -> PlanCheck | None:
    """Return prediction and truth for the images of a run; None for a plan of other settings."""
    if record is None or not meter.images:
        return None
    if (record.fingerprint, record.keep_embeddings) != (fingerprint, keep_embeddings):
        return None
    return PlanCheck(
        created=record.created,
        predicted_s=record.seconds(meter.images),
        actual_s=meter.seconds,
        predicted_bytes=round(record.bytes_per_image * meter.images),
        actual_bytes=meter.size_bytes,
    )
