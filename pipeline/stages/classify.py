"""Classify: embed and label in one actor (GPU pool B), with or without keeping the embeddings."""

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from pipeline.stages.compact import compacted
from pipeline.stages.embed import Embed
from pipeline.stages.label import Label
from pipeline.stages.rows import rows_of
from schemas.annotation import ANNOTATED, ANNOTATED_AND_EMBEDDED, EMBEDDED, table_from_rows
from schemas.manifest import Encoding


@dataclass(frozen=True, eq=False)
class Classify:
    """PROPOSED -> ANNOTATED, or ANNOTATED_AND_EMBEDDED."""

    name: ClassVar[str] = "classify"

    embed: Embed
    label: Label
    keep_embeddings: Encoding | None

    @property
    def schema(self) -> pa.Schema:
        """Columns of the result."""
        return ANNOTATED_AND_EMBEDDED if self.keep_embeddings else ANNOTATED

    def warm_up(self) -> None:
        """Load CLIP, where it is asked."""
        self.embed.warm_up()
        self.label.warm_up()

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return the annotated rows."""
        rows = self.embed.on_rows(rows_of(images))
        annotated = table_from_rows(self.label.on_rows(rows), ANNOTATED)
        if not self.keep_embeddings:
            return annotated
        if self.keep_embeddings == "compact":
            embedded = compacted(rows, self.label.precision)
        else:
            embedded = table_from_rows(rows, EMBEDDED)
        for name in EMBEDDED.names:
            if name not in ANNOTATED.names:
                annotated = annotated.append_column(EMBEDDED.field(name), embedded[name])
        today = self.label.fingerprints
        for name, value in (
            ("proposal_fingerprint", today.proposal),
            ("embedding_fingerprint", today.embedding),
        ):
            annotated = annotated.append_column(name, pa.array([value] * len(annotated)))
        return annotated
