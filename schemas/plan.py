"""What `segmill plan` leaves in a dataset, so that the next run can say how wrong it was."""

from pydantic import BaseModel, ConfigDict


class PlanRecord(BaseModel):
    """A prediction per image; it holds for runs of the same fingerprint and embeddings."""

    # Later versions of Segmill may tell more.
    model_config = ConfigDict(frozen=True, extra="ignore")

    created: str  # UTC, ISO 8601
    fingerprint: str  # of the labels
    keep_embeddings: str | None
    images: int  # that were to do
    start_up_s: float
    seconds_per_image: float
    bytes_per_image: float

    def seconds(self, images: int) -> float:
        """Return the predicted duration of a run over so many images."""
        return self.start_up_s + images * self.seconds_per_image
