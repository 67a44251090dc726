"""Figures as JSON on stdout."""

import json
import math
from collections.abc import Mapping
from typing import Any


def rounded(value: float | None) -> float | None:
    """Return the figure to four digits."""
    # nan, the mean over no class, has no place in JSON.
    return None if value is None or math.isnan(value) else round(value, 4)


def rounded_all(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the figures to four digits."""
    return {name: rounded(value) for name, value in values.items()}


def print_json(values: dict[str, Any]) -> None:
    """Print the one line that programs read."""
    print(json.dumps(values))
