"""How much work was done more than once.

The unit is an image that has left the last stage (classify), which every image passes once in an
undisturbed pass. An image was *in flight* when its run was cut short while it was in no recorded
part: anywhere between the list of work and the record of the part that it was for. Such work is
lost by design, as much as the parts at work hold; it is counted apart (`in_flight`).

`redone` is what was done again beyond that, though it was safe:
- images (with one etag) that stand in recorded parts of more than one run;
- within a run that finished, images that left the last stage again after a worker was killed. Ray
  runs the task of that worker again as a whole: up to a block of images, of which some had left the
  stage. They were in no recorded part either, but this is the stricter way to count.

`needed` is one pass: every image with each content that it had when a run did it, once.
"""

from dataclasses import dataclass, field
from io import BytesIO

import pyarrow.parquet as pq

from pipeline.dataset import read_manifest, versions
from pipeline.files import read_bytes
from pipeline.parts import recorded_parts
from tests.chaos.run import Outcome

_Done = tuple[str, str, str]  # run_id, image_id, etag


@dataclass
class Work:
    """Collects what the runs on one dataset have done."""

    recorded: set[_Done] = field(default_factory=set)
    repeated_within_runs: int = 0
    in_flight: int = 0

    def after_run(self, output: str, outcome: Outcome) -> None:
        """Look at the dataset when a run and all its processes have ended."""
        fresh = self._recorded_now(output) - self.recorded
        self.recorded |= fresh
        done = outcome.done["classify"]
        if outcome.code == 0 and outcome.result:
            own = sum(run_id == outcome.result["run_id"] for run_id, _, _ in self.recorded)
            self.repeated_within_runs += max(0, done - own)
        else:
            self.in_flight += max(0, done - len(fresh))

    @property
    def runs(self) -> int:
        """How many runs have recorded something."""
        return len({run_id for run_id, _, _ in self.recorded})

    @property
    def needed(self) -> int:
        return len({(image_id, etag) for _, image_id, etag in self.recorded})

    @property
    def redone(self) -> int:
        return len(self.recorded) - self.needed + self.repeated_within_runs

    def _recorded_now(self, output: str) -> set[_Done]:
        files = {part.images.path for part in recorded_parts(output).values()}
        for version in versions(output):
            files |= {file.path for file in read_manifest(output, version).images}
        found = set()
        for path in sorted(files):
            data = read_bytes(output, path)
            table = pq.read_table(BytesIO(data), columns=["run_id", "image_id", "etag"])
            found |= {tuple(row.values()) for row in table.to_pylist()}
        return found
