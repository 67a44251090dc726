"""The set of benchmarks, one after the other, each in a process of its own.

    python -m tests.bench [NAME ...]

What they measure and how is in their files. What they found is in `results.json` beside this file,
and drawn as `results.svg`, which the README shows; with names only those are run, and the others
stay as they are there. The last line is JSON with the figures that the README names; null where
the sample data is missing. Everything that they said goes to stderr.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import torch

from pipeline.cores import cores
from tests.bench.plot import RESULTS, draw

# Module and arguments; figures by the name that they have here and there, or all as they are.
SET: Final[Mapping[tuple[str, ...], Mapping[str, str]]] = {
    ("exact_path", "2", "3"): {
        "exact_non_clip_speedup": "exact_non_clip_speedup",
        "exact_non_network_speedup": "exact_non_network_speedup",
    },
    ("bf16", "2"): {"bf16_speedup": "bf16_speedup", "bf16_agreement": "bf16_agreement"},
    ("pipeline", "24"): {
        "pipeline_over_bare_stages": "pipeline_over_bare_stages",
        "naive_ray_ratio": "naive_ray_ratio",
    },
    ("engine", "40000"): {"engine_images_per_s": "engine_images_per_s"},
    ("approximate", "100", "1"): {
        "one_pass_speedup": "one_pass_speedup",
        "one_pass_speedup_100_masks": "one_pass_speedup_100_masks",
        "one_pass_agreement": "one_pass_agreement",
    },
    ("vocabulary", "1", "3"): {"vocabulary_1000_over_10": "vocabulary_1000_over_10"},
    ("planning", "10000", "100000", "1000000"): {},
}


def main() -> int:
    known = [module for module, *_ in SET]
    chosen = sys.argv[1:] or known
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    kept = json.loads(RESULTS.read_text()) if sys.argv[1:] and RESULTS.exists() else {}
    results = {}
    for module, *arguments in SET:
        if module in chosen:
            results[module] = _run(module, arguments)
        elif module in kept:
            results[module] = kept[module]
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, RESULTS.with_suffix(".svg"))
    figures: dict[str, Any] = {}
    for (module, *_), names in SET.items():
        found = results.get(module, {}).get("found", {})
        figures |= {ours: found.get(theirs) for ours, theirs in names.items()} or {module: found}
    print(json.dumps(figures))
    return 0 if all(results[module]["found"] for module in chosen) else 1


def _run(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what a benchmark found, and how long it took; nothing found: it failed."""
    started = time.monotonic()
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, file=sys.stderr, end="", flush=True)
    found: dict[str, Any] = {}
    if not done.returncode:
        (found,) = json.loads(done.stdout.splitlines()[-1]).values()
    seconds = round(time.monotonic() - started)
    print(f"{module}: {seconds} s", file=sys.stderr, flush=True)
    return {
        "date": datetime.now(UTC).date().isoformat(), "seconds": seconds, "cores": cores(),
        "torch": torch.__version__, "found": found,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
