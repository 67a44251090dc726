"""What `segmill export` prints."""

from typing import TYPE_CHECKING

from rich.console import Console

from jobs.show.printing import print_json

if TYPE_CHECKING:
    from jobs.export import ExportResult


def show_export(result: "ExportResult", console: Console) -> int:
    """Print what was written; 1 when too many images are not in it."""
    manifest, counts = result.manifest, result.manifest.counts
    splits = {name: split.images for name, split in counts.splits.items()}
    named = ", ".join(f"{images} {name}" for name, images in splits.items()) or "no images"
    console.print(
        f"version {manifest.version} as {manifest.format}: {named}, {len(manifest.classes)} "
        f"classes; {result.left_out} left out, {counts.quarantined} quarantined",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if result.left_out and result.shards_kept == result.shards:
        console.print(
            "it was finished before; to try the images again that were left out, delete it or name "
            "another --output"
        )
    print_json(
        {
            "output": result.output,
            "format": manifest.format,
            "version": manifest.version,
            "images": splits,
            "segments": sum(split.segments for split in counts.splits.values()),
            "dropped": counts.dropped,
            "left_out": counts.left_out,
            "quarantined": counts.quarantined,
            "shards": result.shards,
            "shards_kept": result.shards_kept,
            "seconds": round(result.seconds, 2),
        }
    )
    return int(result.left_out > result.max_bad_fraction * (counts.images + result.left_out))
