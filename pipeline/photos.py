"""Images of a dataset read again: as they were labelled, or the reason why they cannot be."""

import hashlib
from dataclasses import dataclass

from PIL import Image

from pipeline.decode import BadImage, decode_image
from pipeline.fetching import FetchSettings, Request, fetch
from pipeline.storage import describe, hide_secrets
from schemas.annotate_config import SourceSettings
from schemas.manifest import Manifest


def accepted_limits(manifest: Manifest) -> dict[str, int]:
    """Return max_image_bytes, _pixels and _frames for reading again what a version labels.

    Its run may have had lower ones than earlier runs, of which it kept the labels: no limit is
    below the default.
    """
    defaults = SourceSettings()
    names = ("max_image_bytes", "max_image_pixels", "max_image_frames")
    return {name: max(manifest.config.get(name, 0), getattr(defaults, name)) for name in names}


def difference(data: bytes, sha256: str | None, max_bytes: int) -> tuple[str, str] | None:
    """Return why a file that was fetched is not the labelled one, as a code and in words."""
    if sha256 is not None and hashlib.sha256(data).hexdigest() == sha256:
        return None
    if len(data) > max_bytes:  # it was cut there
        return "too_many_bytes", f"the file has more than {max_bytes} bytes"
    return None if sha256 is None else ("changed", "the file changed since it was labelled")


@dataclass(frozen=True)
class Photos:
    """Reads images under the limits under which runs accepted them."""

    limits: SourceSettings

    @classmethod
    def of(cls, manifest: Manifest) -> "Photos":
        """Take the settings of the run that published a version, with `accepted_limits`."""
        recorded = manifest.config.keys() & SourceSettings.model_fields.keys()
        settings = {name: manifest.config[name] for name in recorded}
        return cls(SourceSettings(**settings | accepted_limits(manifest)))

    def read(self, uri: str, sha256: str | None) -> Image.Image | str:
        """Return the image as it was labelled, or in words why it cannot be shown."""
        (data,) = fetch([Request(uri)], FetchSettings.of(self.limits, self.limits.max_image_bytes))
        if isinstance(data, Exception):
            return f"cannot read {hide_secrets(uri)}: {describe(data)}"
        found = difference(data, sha256, self.limits.max_image_bytes)
        if found is not None:
            return found[1]
        try:
            # In this process: the run decoded the very same bytes without harm.
            limits = self.limits
            return decode_image(data, limits.max_image_pixels, limits.max_image_frames).image
        except BadImage as error:
            return str(error)
