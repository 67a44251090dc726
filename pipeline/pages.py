"""Pages of one file: our own templates and scripts, every value escaped, nothing from elsewhere."""

import base64
import hashlib
from math import isnan
from pathlib import PurePosixPath
from typing import Any, Final, TextIO
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.storage import hide_secrets

_ABSENT: Final = "\N{EN DASH}"


def write_template(file: TextIO, template: str, script: str, **values: Any) -> None:
    """Write a page to `file` bit by bit, so that iterables among the values may be lazy.

    `template` and `script` are names of our files; the policy of the page admits this one script,
    by its hash, and no other.
    """
    environment = Environment(
        loader=PackageLoader("pipeline", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, fine_percent=fine_percent, share=share)
    code = environment.get_template(script).render()
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    stream = environment.get_template(template).stream(
        script=Markup(code),  # our own file, no data in it
        script_hash=f"sha256-{digest}",
        **values,
    )
    stream.enable_buffering(64)
    file.writelines(stream)


def percent(value: float | None) -> str:
    """Return a fraction in percent, a dash where there is none."""
    return _ABSENT if value is None or isnan(value) else f"{value:.1%}"


def fine_percent(value: float | None) -> str:
    """Return a fraction in percent to three digits after the point, a dash where there is none."""
    return _ABSENT if value is None else f"{value:.3%}"


def share(value: float | None) -> str:
    """Return a share of an image in whole percent; something is never 0 %."""
    if value is None:
        return _ABSENT
    return "<1%" if 0 < value < 0.01 else f"{value:.0%}"


def shown_uri(uri: str) -> str:
    """Return a uri as it may be shown: without the query of a URL, where signatures travel."""
    # In the name of a local file a question mark is only a question mark.
    return uri if urlsplit(uri).scheme in ("", "file") else hide_secrets(uri)


def shown_name(uri: str) -> str:
    """Return the file name of a uri."""
    return PurePosixPath(shown_uri(uri)).name or shown_uri(uri)
