"""`segmill annotate`: from a source of images to a published dataset version.

Run again, it does what is missing: new and changed images, what an earlier run did not finish, and
whatever depends on a setting that was changed.
"""

import time
from dataclasses import replace

from jobs.annotation_plan import AnnotationPlan
from jobs.annotation_run import AnnotateResult, holding
from jobs.progress import Progress, RecordedProgress, Silent
from pipeline.secrets import hide_secrets
from schemas.annotate_config import AnnotateConfig


def annotate(config: AnnotateConfig, progress: Progress | None = None) -> AnnotateResult:
    """Label what is missing of the source and publish the result as the next version.

    Raises SettingsError (or a kind of it) for wrong settings before any model is loaded,
    LockedError when another run holds the dataset, and PublicationError when another run published
    the same version meanwhile.
    """
    started = time.monotonic()
    progress = progress or RecordedProgress(Silent())
    with progress:
        plan = AnnotationPlan.of(config)
        with holding(plan, progress) as run:
            progress.say(f"listing {hide_secrets(config.source)}")
            listing = plan.listing()
            result = run.result(listing, started)
            return replace(result, ignored=listing.ignored)
