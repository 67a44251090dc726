"""The Arrow schema of every arrow in the pipeline, one row per image from inventory to disk.

INVENTORY -> fetch + decode -> DECODED -> propose -> PROPOSED -> embed -> EMBEDDED -> label
-> ANNOTATED (written under images/), in which CORRECTIONS (under corrections/) take the place of
a model's labels. Embed and label are one stage, classify, unless the rows of
EMBEDDED were kept (EMBEDDINGS, under embeddings/) and are labelled again.
A quarantined image keeps its row; the columns of later stages are then null or empty.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from schemas.errors import SchemaError

SCHEMA_VERSION: Final = 2

LABELLED: Final = "labelled"
QUARANTINED: Final = "quarantined"

# Who decided the labels of an image.
MODEL: Final = "model"
HUMAN: Final = "human"

ERROR: Final = pa.struct(
    [
        pa.field("stage", pa.string(), nullable=False),  # fetch, decode, propose, embed, label
        pa.field("code", pa.string(), nullable=False),  # a short word to group by
        pa.field("message", pa.string(), nullable=False),
    ]
)

SEGMENT: Final = pa.struct(
    [
        pa.field("segment_id", pa.int32(), nullable=False),  # 1, 2, ... within the image
        pa.field("label", pa.string(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),  # position of label in the vocabulary
        pa.field("score", pa.float32(), nullable=False),  # [0, 1], mean over the segment's pixels
        # How far to trust it, see pipeline/trust.py; all in [0, 1], null where a person drew it.
        pa.field("margin", pa.float32()),  # lead over the second class, mean over its pixels
        pa.field("disagreement", pa.float32()),  # of query head and CLIP; null: only one spoke
        pa.field("stability", pa.float32()),  # of its masks' outlines; null: made without masks
        pa.field("area", pa.int64(), nullable=False),  # pixels
        pa.field("box", pa.list_(pa.int32(), 4), nullable=False),  # XYXY, half-open, pixels
        pa.field("counts", pa.binary(), nullable=False),  # COCO compressed RLE of (height, width)
    ]
)

_IDENTITY: Final[list[pa.Field]] = [
    pa.field("image_id", pa.string(), nullable=False),  # hash of the uri, see image_id()
    pa.field("uri", pa.string(), nullable=False),
    pa.field("etag", pa.string()),  # the store's word for this content; null where it has none
]

_CONTENT: Final[list[pa.Field]] = [
    pa.field("bytes_sha256", pa.string()),
    pa.field("height", pa.int32()),  # of the original after EXIF orientation
    pa.field("width", pa.int32()),
    pa.field("exif_orientation", pa.int8()),  # 1 to 8 as found in the file, 1 when absent
    pa.field("frames", pa.int32()),  # or pages, of which the first is used; null where unknown
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", ERROR),
]

_PIXELS: Final[list[pa.Field]] = [
    pa.field("image", pa.large_binary()),  # resized RGB uint8, row-major (H, W, 3)
    pa.field("image_height", pa.int32()),
    pa.field("image_width", pa.int32()),
]

INVENTORY: Final = pa.schema(
    [
        *_IDENTITY,
        pa.field("size_bytes", pa.int64()),
        # What of the query of a signed URL opens it: used to fetch, and written nowhere.
        pa.field("signature", pa.string()),
    ]
)

DECODED: Final = pa.schema([*_IDENTITY, *_CONTENT, *_PIXELS])

PROPOSALS: Final[list[pa.Field]] = [
    pa.field("mask_logits", pa.large_binary()),  # (Q, h, w) over the padded image, see masks.py
    pa.field("mask_height", pa.int32()),
    pa.field("mask_width", pa.int32()),
    pa.field("n_proposals", pa.int32(), nullable=False),
    pa.field("query_embeds", pa.large_binary()),  # float32 (Q, D), unit length; null: no head
    pa.field("void_logits", pa.large_binary()),  # float32 (Q,), logit of "no object"
    # (D, h, w) on the grid of masks, of a network that proposes none, see pixels.py
    pa.field("pixel_embeds", pa.large_binary()),
]

PROPOSED: Final = pa.schema([*DECODED, *PROPOSALS])

_REGIONS: Final[list[pa.Field]] = [
    pa.field("valid", pa.binary()),  # bool (Q,), proposals with a crop; null: CLIP was not asked
    pa.field("clip_embeds", pa.large_binary()),  # float32 (V, D), unit length, of the valid ones
    # The compact form, see mask_codec.py: it takes the place of mask_logits, and then query_embeds,
    # void_logits and clip_embeds are float16.
    pa.field("mask_picture", pa.large_binary()),
]

_WITHOUT_PIXELS: Final[list[pa.Field]] = [
    *_IDENTITY,
    *_CONTENT,
    *(field for field in _PIXELS if field.name != "image"),
    *PROPOSALS,
    *_REGIONS,
]

EMBEDDED: Final = pa.schema(_WITHOUT_PIXELS)

# What a new vocabulary, prompt, weight or threshold is applied to without reading an image.
EMBEDDINGS: Final = pa.schema(
    [
        *_WITHOUT_PIXELS,
        pa.field("proposal_fingerprint", pa.string(), nullable=False),  # of what decides proposals
        pa.field("embedding_fingerprint", pa.string(), nullable=False),  # and of CLIP's vectors
    ],
    metadata={"segmill_schema_version": str(SCHEMA_VERSION)},
)

ANNOTATED: Final = pa.schema(
    [
        *_IDENTITY,
        *_CONTENT,
        pa.field("fingerprint", pa.string(), nullable=False),  # of all that decides this row
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("annotator", pa.string(), nullable=False),  # model, or human: a correction
        pa.field("n_proposals", pa.int32(), nullable=False),
        pa.field("coverage", pa.float32()),  # fraction of pixels that carry a label
        pa.field("mean_score", pa.float32()),  # over labelled pixels
        pa.field(
            "segments", pa.list_(pa.field("element", SEGMENT, nullable=False)), nullable=False
        ),
    ],
    metadata={"segmill_schema_version": str(SCHEMA_VERSION)},
)

# What people drew: it takes the place of a model's labels while the image's content is the same.
CORRECTIONS: Final = pa.schema(
    [
        *_IDENTITY,
        *(field for field in _CONTENT if field.name not in ("status", "error")),
        pa.field("sha256", pa.string(), nullable=False),  # of the label map, see corrections.py
        # By name, so that it stands under any vocabulary; the masks do not overlap.
        pa.field(
            "regions",
            pa.list_(
                pa.struct(
                    [
                        pa.field("label", pa.string(), nullable=False),
                        pa.field("counts", pa.binary(), nullable=False),  # COCO compressed RLE
                    ]
                )
            ),
            nullable=False,
        ),
    ],
    metadata={"segmill_schema_version": str(SCHEMA_VERSION)},
)

# What leaves the last stage where embeddings are kept: ANNOTATED and, of labelled images, them.
ANNOTATED_AND_EMBEDDED: Final = pa.schema(
    [*ANNOTATED, *(field for field in EMBEDDINGS if field.name not in ANNOTATED.names)]
)


def image_id(uri: str) -> str:
    """Return the stable identity of the image at `uri`: 32 hexadecimal digits."""
    return hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return `table` with exactly the columns of `schema`, in its order and types.

    Raises SchemaError when columns are missing or unexpected, a type does not fit, or a column
    that must not be null holds nulls.
    """
    expected, found = Counter(schema.names), Counter(table.column_names)
    missing, extra = sorted(expected - found), sorted(found - expected)  # extra: also repeated
    if missing or extra:
        raise SchemaError(f"missing columns {missing}, unexpected columns {extra}")
    try:
        conformed = table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise SchemaError(f"columns do not fit the schema: {error}") from error
    for field in schema:
        if not field.nullable and conformed[field.name].null_count:
            raise SchemaError(f"column {field.name!r} must not hold nulls")
    return conformed


def table_from_rows(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Build a table of `schema` from row dictionaries; an absent nullable key becomes null."""
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if pa.types.is_large_binary(field.type):
            columns.append(_large_binaries(values))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _large_binaries(values: Sequence[bytes | memoryview | None]) -> pa.Array:
    """Return an array whose memory is taken at once.

    Pixels and masks are megabytes an image: Arrow's builder moves all that it has whenever it must
    grow. The memory is Arrow's, which keeps what is given back for the next table: memory that is
    new to a process takes three times as long to fill.
    """
    sizes = [0 if value is None else memoryview(value).nbytes for value in values]
    ends = np.cumsum([0, *sizes], dtype=np.int64)
    data = pa.allocate_buffer(int(ends[-1]))
    memory = np.frombuffer(data, np.uint8)
    for value, start, end in zip(values, ends, ends[1:], strict=False):
        if value is not None:
            memory[start:end] = np.frombuffer(value, np.uint8)
    present = pa.array([value is not None for value in values], pa.bool_())
    buffers = [present.buffers()[1], pa.py_buffer(ends), data]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)
