"""What `segmill diff` and `segmill explain` print."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.show.printing import print_json, rounded

if TYPE_CHECKING:
    from jobs.explain import ExplainResult
    from pipeline.comparison.result import DiffResult
    from pipeline.explanation.pixel import PixelTerms

_SHOWN = 12  # classes and flows


def show_diff(result: "DiffResult", console: Console) -> int:
    """Print what changed; 1 when a limit was not kept."""
    images = result.images
    moved = images.moved_share
    title = f"{result.before} -> {result.after}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("images", justify="right")
    table.add_column("")
    for number, what in (
        (images.compared, "compared"),
        (images.moved, "  with moved pixels"),
        (images.replaced, "of another content, not compared"),
        (images.added, "added"),
        (images.removed, "removed"),
        *((count, f"{old} -> {new}") for (old, new), count in result.status_changes.items()),
    ):
        table.add_row(str(number), escape(what))
    console.print(table)
    if moved is not None:
        console.print(f"{moved:.4%} of {images.pixels:,} pixels moved", highlight=False)
    _show_largest(result, console)
    if result.settings:
        names = ", ".join(result.settings)
        console.print(f"settings that differ: {names}", highlight=False, markup=False)
    for failure in result.failures:
        console.print(failure, style="red", highlight=False, markup=False, soft_wrap=True)
    print_json(
        {
            "before": str(result.before),
            "after": str(result.after),
            "compared": images.compared,
            "moved": rounded(moved),
            "moved_pixels": images.moved_pixels,
            "min_class_iou": rounded(min((drift.iou for drift in result.classes), default=None)),
            "added": images.added,
            "removed": images.removed,
            "lost": images.lost,
            "failures": list(result.failures),
            "seconds": round(result.seconds, 2),
        }
    )
    return int(bool(result.failures))


def _show_largest(result: "DiffResult", console: Console) -> None:
    """Print the classes that drifted furthest and the largest flows."""
    drifted = [drift for drift in result.classes if drift.iou < 1]
    if not drifted:
        return
    table = Table(title="classes that drifted furthest", title_justify="left")
    for name in ("class", "before", "after", "IoU"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for drift in drifted[:_SHOWN]:
        row = (f"{drift.before:,}", f"{drift.after:,}", f"{drift.iou:.4f}")
        table.add_row(escape(drift.name), *row)
    console.print(table)
    flows = Table(title="largest flows", title_justify="left")
    for name in ("before", "after", "pixels"):
        flows.add_column(name, justify="right" if name == "pixels" else "left")
    for flow in result.flows[:_SHOWN]:
        ends = (
            escape(end if end is not None else "(no label)") for end in (flow.before, flow.after)
        )
        flows.add_row(*ends, f"{flow.pixels:,}")
    console.print(flows)


def show_explain(result: "ExplainResult", console: Console) -> int:
    """Print why the pixel has its label."""
    column, row = result.at
    lines = [f"pixel {column},{row} of {result.uri}, version {result.version}, run {result.run_id}"]
    if result.error is not None:
        lines.append("quarantined: {stage}/{code}: {message}".format(**result.error))
    elif result.segment is None:
        lines.append("no label")
    else:
        segment = result.segment
        lines.append(
            f"label {segment.label}: segment {segment.segment_id}, mean score {segment.score:.4f}, "
            f"{segment.area} pixels, box {segment.box}"
        )
        measures = {
            "margin": segment.margin,
            "disagreement of the heads": segment.disagreement,
            "stability": segment.stability,
        }
        known = [f"{name} {value:.4f}" for name, value in measures.items() if value is not None]
        if known:
            lines.append(", ".join(known))
    if result.is_below_min_score:
        lines.append(f"its score is under min_score {result.thresholds['min_score']}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if result.terms is not None:
        _show_terms(result.terms, console)
    if result.unknown is not None:
        console.print(result.unknown, style="yellow", markup=False, soft_wrap=True)
    for name, value in {**result.thresholds, **result.weights}.items():
        console.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
    print_json({**asdict(result), "seconds": round(result.seconds, 3)})
    return 0


def _show_terms(terms: "PixelTerms", console: Console) -> None:
    classes = Table(title="classes at the pixel", title_justify="left")
    for name in ("class", "score", "seen", "query exponent", "CLIP exponent"):
        classes.add_column(name, justify="left" if name == "class" else "right")
    for one in terms.classes:
        exponents = (f"{one.query_exponent:.2f}", f"{1 - one.query_exponent:.2f}")
        is_seen = "yes" if one.is_seen else "no"
        classes.add_row(escape(one.name), f"{one.score:.4f}", is_seen, *exponents)
    console.print(classes)
    height, width = terms.image_size
    title = (
        f"proposals that gave it {terms.winner} (boxes in the resized image, {width} x {height})"
    )
    table = Table(title=escape(title), title_justify="left")
    for name in ("proposal", "share", "mask", "query", "no object", "CLIP", "fused", "crop box"):
        table.add_column(name, justify="right")
    for term in terms.proposals:
        probs = (term.query_prob, term.void_prob, term.clip_prob, term.fused)
        shown = ["-" if prob is None else f"{prob:.4f}" for prob in probs]
        box = "-" if term.box is None else ",".join(map(str, term.box))
        values = (f"{term.share:.1%}", f"{term.mask_prob:.4f}", *shown, box)
        table.add_row(str(term.proposal), *values)
    console.print(table)
