"""Semantic PNG: maps of class indices in the colours of PASCAL VOC, as `datasets prepare` lays out.

images/SPLIT/NAME.jpg
masks/SPLIT/NAME.png     class indices from 0; 255 is ignored (16 bits from 256 classes)
SPLIT.txt                names, one a line
classes.txt              class names in order
vocabulary.yaml, dataset.json     so that `segmill train` reads it (where images are with it)
"""

from collections.abc import Iterable

from pipeline.datasets.layout import (
    DATASET_FILE,
    VOCABULARY_FILE,
    SegmentationDataset,
    SplitFacts,
    dataset_text,
    vocabulary_text,
)
from pipeline.exports.formats import ExportFormat
from pipeline.exports.masks import encode_labels
from pipeline.exports.output import Export, Shard
from pipeline.exports.records import ExportImage
from schemas.export_manifest import ExportCounts
from schemas.vocabulary import Vocabulary


def _write(shard: Shard, images: Iterable[ExportImage]) -> None:
    ignore = shard.export.ignore
    for image in images:
        data = encode_labels(image.label_map(ignore), ignore, palette=True)
        shard.export.write(f"masks/{image.split}/{image.name}.png", data)
        shard.add_line(f"names_{image.split}", image.name)


def _finish(export: Export, counts: ExportCounts) -> None:
    for split in counts.splits:
        export.write_lines(f"{split}.txt", f"names_{split}")
    export.write("classes.txt", "".join(f"{name}\n" for name in export.classes).encode())
    vocabulary = Vocabulary.of(export.classes)
    export.write(VOCABULARY_FILE, vocabulary_text(vocabulary).encode())
    if export.has_images:
        export.write(DATASET_FILE, dataset_text(_description(export, counts)).encode())


def _description(export: Export, counts: ExportCounts) -> SegmentationDataset:
    return SegmentationDataset(
        name=f"export of {export.dataset}",
        num_classes=len(export.classes),
        ignore=export.ignore,
        fingerprint=export.fingerprint,
        splits={
            split: SplitFacts(
                images=f"images/{split}",
                masks=f"masks/{split}",
                vocabulary=VOCABULARY_FILE,
                count=found.images,
                skipped=0,
                class_pixels=found.class_pixels,
                class_images=found.class_images,
                ignored_pixels=found.ignored_pixels,
            )
            for split, found in counts.splits.items()
        },
    )


SEMANTIC_PNG = ExportFormat(_write, _finish)
