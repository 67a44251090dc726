"""What the commands on models and weights print."""

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from jobs.models import ModelsResult
    from jobs.weights import ConvertResult, InspectResult


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


def show_models(result: "ModelsResult", console: Console) -> int:
    """Print names and summaries."""
    for kind, entries in (("proposers", result.proposers), ("classifiers", result.classifiers)):
        console.print(kind, style="bold")
        for name, summary in entries.items():
            console.print(f"  {name:<18}{summary}", highlight=False, markup=False, soft_wrap=True)
    return 0
