"""Where the embedded tiny models are: the only thing the rest of the code knows about them."""

from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve().parents[1] / "embedded"

EMBEDDED_PROPOSER: Final = _HERE / "proposer"
EMBEDDED_CLIP: Final = _HERE / "clip"
EMBEDDED_VOCABULARY: Final = _HERE / "vocabulary.yaml"
