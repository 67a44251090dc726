"""The image files of an export: fetched under its own rules, checked, put upright."""

import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, Final

from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from pipeline.decode import BadImage, decode_image
from pipeline.exports.output import Export
from pipeline.exports.records import ExportImage, Picture
from pipeline.fetching import FetchSettings, Request, fetch, in_groups, is_transient
from pipeline.files import DRAFT_SUFFIX
from pipeline.packed import split_member
from pipeline.photos import accepted_limits, difference
from pipeline.storage import describe, hide_secrets, open_store, trust
from pipeline.web import WEB_SCHEMES
from schemas.annotate_config import IMAGE_EXTENSIONS
from schemas.errors import OutputError, SegmillError, SourceError, StoreUnavailableError
from schemas.export_config import VersionSettings
from schemas.manifest import Manifest

# What a file begins with -> its suffix; readers choose their decoder by it.
_MAGIC: Final = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


@dataclass(frozen=True)
class LeftOut:
    """An image cannot be had as it was labelled: `code` is a word to group by."""

    code: str
    message: str


@dataclass(frozen=True)
class Pictures:
    """Fetches the images of a dataset, whose word alone does not open every place."""

    dataset: str
    trusted: bool  # it may name local files although it is in a store itself
    fetching: FetchSettings
    max_pixels: int
    max_frames: int

    @classmethod
    def of(cls, config: VersionSettings, manifest: Manifest, kept_bytes: int = 0) -> "Pictures":
        """Take the limits under which images were accepted; where they may be is ours."""
        limits = accepted_limits(manifest)
        fetching = FetchSettings.of(config, limits["max_image_bytes"])
        return cls(
            dataset=config.dataset,
            trusted=config.trust_dataset,
            fetching=replace(fetching, kept_bytes=kept_bytes),
            max_pixels=limits["max_image_pixels"],
            max_frames=limits["max_image_frames"],
        )

    def fetch(self, rows: Sequence[Mapping[str, Any]]) -> list[bytes | LeftOut]:
        """Return the files of dataset rows as they were labelled, or why one cannot be had.

        Raises StoreUnavailableError where a store gives none of several images.
        """
        allowed = [self._is_allowed(row["uri"]) for row in rows]
        requests = [Request(row["uri"]) for row, yes in zip(rows, allowed, strict=True) if yes]
        results = [data for group in in_groups(requests) for data in fetch(group, self.fetching)]
        _check_available(requests, results)
        fetched = iter(results)
        return [
            self._checked(row, next(fetched))
            if yes
            else LeftOut("refused", "a dataset there may not name it (trust_dataset)")
            for row, yes in zip(rows, allowed, strict=True)
        ]

    def picture(self, row: Mapping[str, Any], data: bytes) -> Picture | LeftOut:
        """Return the file to write: the same, or an upright PNG of one that is stored turned."""
        if row["exif_orientation"] in (None, 1):
            return Picture(data, _suffix(row["uri"], data))
        # Most trainers do not turn images, and labels are those of the upright one.
        image = self.decode(data)
        if isinstance(image, LeftOut):
            return image
        file = BytesIO()
        image.save(file, "PNG", compress_level=1)
        return Picture(file.getvalue(), ".png")

    def decode(self, data: bytes) -> Image.Image | LeftOut:
        """Return the upright RGB image of a file that `fetch` returned."""
        try:
            # In this process: the run decoded the very same bytes without harm.
            return decode_image(data, self.max_pixels, self.max_frames).image
        except BadImage as error:
            return LeftOut(error.code, str(error))

    def _checked(self, row: Mapping[str, Any], data: bytes | Exception) -> bytes | LeftOut:
        if isinstance(data, Exception):
            return LeftOut("unreadable", describe(data))
        found = difference(data, row["bytes_sha256"], self.fetching.max_bytes)
        return data if found is None else LeftOut(*found)

    def _is_allowed(self, uri: str) -> bool:
        try:
            place, _ = open_store(uri, SourceError, self.fetching.web)
            home, _ = open_store(self.dataset, OutputError)
        except SegmillError:
            return True  # fetching it says why it cannot be
        return self.trusted or trust(place) <= trust(home)


def _check_available(requests: Sequence[Request], results: Sequence[bytes | Exception]) -> None:
    # Each web server is a place of its own; a dead one is no reason to stop.
    ours = [
        (request.uri, result)
        for request, result in zip(requests, results, strict=True)
        if request.uri.partition("://")[0] not in WEB_SCHEMES
    ]
    if len(ours) > 1 and all(is_transient(result) for _, result in ours):
        uri, error = ours[0]
        raise StoreUnavailableError(
            f"none of {len(ours)} images could be fetched, the first was {hide_secrets(uri)}: "
            f"{describe(error) if isinstance(error, Exception) else ''}; the shards that are done "
            "are kept, run again when the store answers"
        )


def _suffix(uri: str, data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    for start, suffix in _MAGIC.items():
        if data.startswith(start):
            return suffix
    suffix = PurePosixPath(uri.partition("?")[0]).suffix.lower()
    return suffix if suffix[1:] in IMAGE_EXTENSIONS else ".img"


def store_picture(export: Export, image: ExportImage, link: bool) -> None:
    """Write the picture of an image to its place; a link to its file where that is possible."""
    if image.picture is None:
        raise ValueError(f"{image.name} has no picture")
    if not (link and _linked(export, image)):
        export.write(image.file_name, image.picture.data)


def _linked(export: Export, image: ExportImage) -> bool:
    here, root = open_store(export.url, OutputError)
    is_file = image.uri.startswith("file://") and split_member(image.uri)[1] is None
    if not isinstance(here, LocalFileSystem) or not is_file:
        return False
    _, path = open_store(image.uri, SourceError)
    picture = image.picture
    if picture is None or os.path.getsize(path) != len(picture.data):
        return False  # it was turned
    target = f"{root}/{image.file_name}"
    draft = f"{target}.{uuid.uuid4().hex}{DRAFT_SUFFIX}"
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.link(os.path.realpath(path), draft)
        os.replace(draft, target)
    except OSError:  # another disk, or one without hard links
        return False
    finally:
        # Of two links to one file the replacement does nothing, and the draft stays.
        with suppress(FileNotFoundError):
            os.unlink(draft)
    return True
