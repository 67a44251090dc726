"""Images of a dataset read again: as they were labelled, or the reason why they cannot be."""

import hashlib
from dataclasses import dataclass

from PIL import Image

from pipeline.decode import BadImage, decode_image
from pipeline.fetching import FetchSettings, Request, fetch
from pipeline.storage import describe, hide_secrets
from schemas.annotate_config import SourceSettings
from schemas.manifest import Manifest


@dataclass(frozen=True)
class Photos:
    """Reads images under the limits under which a run accepted them."""

    limits: SourceSettings

    @classmethod
    def of(cls, manifest: Manifest) -> "Photos":
        """Take the limits of the run that published a version."""
        recorded = manifest.config.keys() & SourceSettings.model_fields.keys()
        return cls(SourceSettings(**{name: manifest.config[name] for name in recorded}))

    def read(self, uri: str, sha256: str | None) -> Image.Image | str:
        """Return the image as it was labelled, or in words why it cannot be shown."""
        (data,) = fetch([Request(uri)], FetchSettings.of(self.limits, self.limits.max_image_bytes))
        if isinstance(data, Exception):
            return f"cannot read {hide_secrets(uri)}: {describe(data)}"
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            return "the file changed since it was labelled"
        try:
            # In this process: the run decoded the very same bytes without harm.
            limits = self.limits
            return decode_image(data, limits.max_image_pixels, limits.max_image_frames).image
        except BadImage as error:
            return str(error)
