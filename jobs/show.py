"""What a command prints when it is done, and its exit code: results on stdout, talk on stderr."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from jobs.annotate import AnnotateResult
    from jobs.datasets import DatasetsResult, PrepareResult
    from jobs.demo import DemoResult
    from jobs.models import ModelsResult
    from jobs.report import ReportResult
    from jobs.train_proposals import TrainProposalsResult
    from jobs.vacuum import VacuumResult
    from jobs.verify import VerifyResult
    from jobs.versions import VersionsResult
    from jobs.weights import ConvertResult, InspectResult
    from pipeline.evaluation.result import EvaluateResult, ProposalFigures
    from pipeline.metrics import Protocol


def show_annotate(result: "AnnotateResult", console: Console) -> int:
    """Print the account of the run; 1 when too many images were bad."""
    counts = result.counts
    table = Table(title=f"version {result.version} of {result.output}", title_justify="left")
    table.add_column("images", justify="right")
    table.add_column("")
    table.add_column("share", justify="right")

    def add(number: int, what: str) -> None:
        table.add_row(str(number), what, f"{number / counts.inventory:.1%}")

    changes = result.changes
    add(counts.inventory, "in the inventory")
    add(changes.kept, "  were done before")
    add(changes.done, "  done by this run")
    if changes.from_embeddings:
        add(changes.from_embeddings, "    from kept embeddings")
    add(counts.labelled, "labelled")
    add(counts.quarantined, "quarantined")
    for reason, number in counts.reasons.items():
        add(number, f"  {reason}")
    console.print(table)
    if not result.published:
        console.print("nothing has changed: this version stays the newest")
    if changes.removed:
        console.print(f"{changes.removed} images of the version before are no longer there")
    if result.ignored:
        console.print(f"{result.ignored} other files were passed over (see --extensions)")
    if result.repeated:
        console.print(f"{result.repeated} repeated entries of the list were taken once")
    rate = changes.done / result.seconds
    console.print(f"{result.seconds:.1f} s, {rate:.2f} images/s with start-up", highlight=False)
    if result.too_many_bad:
        console.print("too many images were quarantined (see --max-bad-fraction)", style="red")
    _print_json(
        {
            "output": result.output,
            "version": result.version,
            "published": result.published,
            "run_id": result.run_id,
            "images": counts.inventory,
            "done": changes.done,
            "from_embeddings": changes.from_embeddings,
            "removed": changes.removed,
            "labelled": counts.labelled,
            "quarantined": counts.quarantined,
            "seconds": round(result.seconds, 2),
        }
    )
    return int(result.too_many_bad)


def show_versions(result: "VersionsResult", console: Console) -> int:
    """Print a line per version."""
    table = Table(title=result.dataset, title_justify="left")
    for name in ("version", "images", "done", "removed", "quarantined", "files", "MiB"):
        table.add_column(name, justify="right")
    table.add_column("created")
    table.add_column("run")
    rows = []
    for manifest in result.manifests:
        size_bytes = sum(file.size_bytes for file in manifest.images)
        size_bytes += sum(file.size_bytes for file in manifest.embeddings)
        counts, changes = manifest.counts, manifest.changes
        rows.append(
            {
                "version": manifest.version,
                "images": counts.inventory,
                "done": changes.done,
                "removed": changes.removed,
                "quarantined": counts.quarantined,
                "files": len(manifest.images) + len(manifest.embeddings),
                "size_bytes": size_bytes,
                "created": manifest.created.isoformat(timespec="seconds"),
                "run_id": manifest.run_id,
            }
        )
        shown = {**rows[-1], "size_bytes": f"{size_bytes / 2**20:.1f}"}
        table.add_row(*map(str, shown.values()))
    console.print(table)
    _print_json({"dataset": result.dataset, "versions": rows})
    return 0


def show_verify(result: "VerifyResult", console: Console) -> int:
    """Print what is wrong; 1 when anything is."""
    for problem in result.problems:
        console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    verdict = f"{len(result.problems)} problems" if result.problems else "whole"
    console.print(
        f"version {result.version}: {result.files} files, {result.images} images, "
        f"{result.label_maps} label maps read: {verdict}",
        highlight=False,
    )
    _print_json(
        {
            "version": result.version,
            "images": result.images,
            "files": result.files,
            "label_maps": result.label_maps,
            "problems": len(result.problems),
            "seconds": round(result.seconds, 2),
        }
    )
    return int(bool(result.problems))


def show_vacuum(result: "VacuumResult", console: Console) -> int:
    """Print what was deleted, or would be."""
    for path in result.files:
        console.print(path, highlight=False, markup=False, soft_wrap=True)
    named = ", ".join(map(str, result.versions)) or "none"
    done = "deleted" if result.deleted else "would be deleted (see --delete)"
    console.print(f"versions: {named}; {len(result.files)} files: {done}", highlight=False)
    _print_json(
        {
            "deleted": result.deleted,
            "versions": list(result.versions),
            "files": len(result.files),
            "size_bytes": result.size_bytes,
        }
    )
    return 0


def show_evaluate(result: "EvaluateResult", console: Console) -> int:
    """Print the figures, the protocol that was asked for first."""
    figures: dict[str, Any] = {}
    if result.has_classes:
        figures = _show_classes(result, console)
    outlines = result.total.outlines
    figures["outline_f"] = _rounded(outlines.f_measure()[0])
    console.print(
        f"outlines: precision {outlines.precision()[0]:.3f}, recall {outlines.recall()[0]:.3f}, "
        f"F {outlines.f_measure()[0]:.3f}",
        highlight=False,
    )
    if result.has_scores:
        error = result.total.calibration.expected_error()
        figures["expected_calibration_error"] = _rounded(error)
        console.print(f"expected calibration error {error:.3f}", highlight=False)
    if result.proposals is not None:
        figures["proposals"] = _show_proposals(result.proposals, result.protocol, console)
    _print_json(
        {
            "images": result.images,
            "without_truth": result.without_truth,
            "quarantined": result.quarantined,
            "protocol": result.protocol,
            **figures,
        }
    )
    return 0


def _show_classes(result: "EvaluateResult", console: Console) -> dict[str, Any]:
    protocols = sorted(result.by_protocol, key=lambda name: name != result.protocol)
    table = Table(title=f"{result.images} images", title_justify="left")
    table.add_column("mean over classes")
    for protocol in protocols:
        table.add_column(protocol, justify="right")
    rows = {
        "seen mIoU": "seen_miou",
        "unseen mIoU": "unseen_miou",
        "hIoU": "hiou",
        "mIoU": "miou",
        "boundary mIoU": "boundary_miou",
    }
    for title, name in rows.items():
        values = [getattr(result.by_protocol[protocol], name) for protocol in protocols]
        if None not in values:
            table.add_row(title, *(f"{value:.3f}" for value in values))
    console.print(table)
    console.print(
        f"mean accuracy {result.mean_accuracy:.3f}, pixel accuracy {result.pixel_accuracy:.3f}, "
        f"frequency-weighted IoU {result.frequency_weighted_iou:.3f}",
        highlight=False,
        soft_wrap=True,
    )
    return {
        **_rounded_all(asdict(result.headline)),
        "mean_accuracy": _rounded(result.mean_accuracy),
        "pixel_accuracy": _rounded(result.pixel_accuracy),
        "frequency_weighted_iou": _rounded(result.frequency_weighted_iou),
        "by_protocol": {
            protocol: _rounded_all(asdict(means)) for protocol, means in result.by_protocol.items()
        },
    }


def _show_proposals(
    proposals: "ProposalFigures", protocol: "Protocol", console: Console
) -> dict[str, Any]:
    recall, outlines = proposals.recall, proposals.outlines
    figures = {
        "average_recall": _rounded(recall.average_recall()[-1]),
        "recall_at_50": _rounded(recall.recall()[-1, 0]),
        "mean_best_iou": _rounded(recall.mean_best_iou()[-1]),
        "best_outline_f": _rounded(max(outlines.f_measure())),
    }
    console.print(
        f"{recall.mean_proposals:.1f} proposals an image: average recall "
        f"{recall.average_recall()[-1]:.3f}, recall at IoU 0.5 {recall.recall()[-1, 0]:.3f}, "
        f"mean best IoU {recall.mean_best_iou()[-1]:.3f}",
        highlight=False,
        soft_wrap=True,
    )
    if proposals.oracle_means is not None:
        means = proposals.oracle_means[protocol]
        figures |= {f"oracle_{name}": _rounded(value) for name, value in asdict(means).items()}
        console.print(f"oracle labels: mIoU {means.miou:.3f}", highlight=False)
    return figures


def show_report(result: "ReportResult", console: Console) -> int:
    """Print where the page is."""
    console.print(f"open {result.output} in a browser", highlight=False, soft_wrap=True)
    return 0


def show_demo(result: "DemoResult", console: Console) -> int:
    """Print the figures of the demo."""
    console.print(
        f"seen mIoU {result.seen_miou:.3f}, unseen mIoU {result.unseen_miou:.3f}, "
        f"hIoU {result.hiou:.3f}; open {result.report} in a browser",
        highlight=False,
        soft_wrap=True,
    )
    _print_json(
        {
            "images": result.images,
            "seconds": round(result.seconds, 1),
            "seen_miou": _rounded(result.seen_miou),
            "unseen_miou": _rounded(result.unseen_miou),
            "hiou": _rounded(result.hiou),
            "report": str(result.report),
        }
    )
    return 0


def show_convert(result: "ConvertResult", console: Console) -> int:
    """Print where the parts went, and how to use them."""
    for part in ("proposer", "clip", "prompt", "region_clip", "region_prompt"):
        if path := getattr(result, part):
            console.print(f"{part:<14}{path}", highlight=False, markup=False, soft_wrap=True)
    if result.unused:
        unused = ", ".join(result.unused)
        console.print(f"not part of a network: {unused}", highlight=False, markup=False)
    use = f"--proposer-weights {result.proposer}"
    use += f" --clip local-dir:{result.clip}" if result.clip else ""
    use += f" --prompts {result.prompt}" if result.prompt else ""
    use += f" --region-prompts {result.region_prompt}" if result.region_prompt else ""
    console.print(f"segmill annotate ... {use}", highlight=False, markup=False, soft_wrap=True)
    return 0


def show_inspect(result: "InspectResult", console: Console) -> int:
    """Print what was found; 1 when it would not load."""
    console.print(f"{result.path}: {result.kind}", highlight=False, markup=False)
    for name, value in result.facts.items():
        console.print(f"  {name:<22}{value}", highlight=False, markup=False, soft_wrap=True)
    for part, count in result.parameters.items():
        console.print(f"  {count:>12,} parameters in {part}", highlight=False, markup=False)
    for problem in result.problems:
        console.print(f"  problem: {problem}", style="red", highlight=False, markup=False)
    return int(bool(result.problems))


def show_train_proposals(result: "TrainProposalsResult", console: Console) -> int:
    """Print what was learned from, and where the weights are."""
    for reason, number in result.skipped.items():
        console.print(f"{number} images were left out: {reason}", highlight=False, markup=False)
    console.print(
        f"{result.steps - result.resumed_from} steps in {result.seconds:.1f} s with start-up; loss "
        f"{result.first_loss:.3f} -> {result.last_loss:.3f}",
        highlight=False,
    )
    console.print(
        f"annotate with them: --proposer-weights {result.proposer}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    _print_json(
        {
            "proposer": str(result.proposer),
            "steps": result.steps,
            "resumed_from": result.resumed_from,
            "images": result.images,
            "skipped": dict(result.skipped),
            "seen_classes": result.seen_classes,
            "first_loss": _rounded(result.first_loss),
            "last_loss": _rounded(result.last_loss),
            "seconds": round(result.seconds, 2),
        }
    )
    return 0


def show_models(result: "ModelsResult", console: Console) -> int:
    """Print names and summaries."""
    for kind, entries in (("proposers", result.proposers), ("classifiers", result.classifiers)):
        console.print(kind, style="bold")
        for name, summary in entries.items():
            console.print(f"  {name:<18}{summary}", highlight=False, markup=False, soft_wrap=True)
    return 0


def show_datasets(result: "DatasetsResult", console: Console) -> int:
    """Print what can be prepared, and from what."""
    for name, entry in result.entries.items():
        console.print(f"{name:<20}{entry.summary}", highlight=False, markup=False, soft_wrap=True)
        images = "".join(f", {split} {number:,} images" for split, number in entry.images.items())
        needs = f"{'':<20}from {', '.join(entry.downloads)}{images}"
        console.print(needs, style="dim", highlight=False, markup=False, soft_wrap=True)
    return 0


def show_prepare(result: "PrepareResult", console: Console) -> int:
    """Print a line per split."""
    dataset = result.dataset
    table = Table(title=f"{dataset.name} in {result.output}", title_justify="left")
    for name in ("split", "images", "skipped", "classes", "absent"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, facts in dataset.splits.items():
        absent = sum(number == 0 for number in facts.class_images)
        numbers = (facts.count, facts.skipped, len(facts.class_images), absent)
        table.add_row(split, *map(str, numbers))
    console.print(table)
    _print_json(
        {
            "output": str(result.output),
            "images": {split: facts.count for split, facts in dataset.splits.items()},
            "skipped": {split: facts.skipped for split, facts in dataset.splits.items()},
            "seconds": round(result.seconds, 2),
        }
    )
    return 0


def _rounded(value: float | None) -> float | None:
    # nan, the mean over no class, has no place in JSON.
    return None if value is None or math.isnan(value) else round(value, 4)


def _rounded_all(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: _rounded(value) for name, value in values.items()}


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values))
