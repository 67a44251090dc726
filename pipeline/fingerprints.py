"""Hashes of all that decides a result: rows that agree in them need not be made again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.annotation import SCHEMA_VERSION


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of all that decides a result, from stage to stage; each includes the one before.

    `decode` covers the limits as well, which decide only whether an image is quarantined.
    """

    decode: str
    proposal: str
    embedding: str
    label: str

    @property
    def label_of_compact(self) -> str:
        """What decides a label from compact embeddings, which need not be that of a full run."""
        return _hash([self.label, "compact"])

    def of_failure(self, stage: str) -> str:
        """Return what decides that an image is quarantined by a stage."""
        return {
            "fetch": self.decode,
            "decode": self.decode,
            "propose": self.proposal,
            "embed": self.embedding,
        }.get(stage, self.label)

    @staticmethod
    def of_correction(sha256: str, names: Sequence[str]) -> str:
        """Return what decides the labels that a person drew: these, and what classes are called."""
        return _hash([sha256, list(names), SCHEMA_VERSION])

    @property
    def of_quarantined(self) -> tuple[str, ...]:
        """Every fingerprint that a quarantined row of today can have."""
        return self.decode, self.proposal, self.embedding, self.label

    @classmethod
    def of(
        cls,
        limits: Mapping[str, Any],
        proposal: Mapping[str, Any],
        embedding: Mapping[str, Any],
        label: Mapping[str, Any],
    ) -> "Fingerprints":
        """Hash what each stage depends on, given as plain values."""
        proposals = _hash(proposal)
        embeddings = _hash([proposals, embedding])
        return cls(
            decode=_hash([limits]),
            proposal=proposals,
            embedding=embeddings,
            label=_hash([embeddings, label]),
        )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
