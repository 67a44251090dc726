"""The set of benchmarks, one after the other, each in a process of its own.

    python -m tests.bench [FOLDER]

What they measure and how is in their files. All that they found is written to FOLDER/results.json,
and drawn as FOLDER/results.svg; without FOLDER beside this file, which is where the README shows
it from. The last line is JSON with the figures that the README names; null where the sample data
is missing. Everything that they said goes to stderr.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import ray
import torch

from pipeline.cores import cores
from tests.bench.plot import RESULTS, draw

# Module and arguments; figures by the name that they have here and there, or all as they are.
SET: Final[Mapping[tuple[str, ...], Mapping[str, str]]] = {
    ("exact_path", "2", "3"): {
        "exact_non_clip_speedup": "exact_non_clip_speedup",
        "bf16_speedup": "bf16_speedup",
        "bf16_agreement": "bf16_agreement",
    },
    ("pipeline", "24"): {
        "pipeline_over_bare_stages": "pipeline_over_bare_stages",
        "naive_ray_ratio": "naive_ray_ratio",
    },
    ("engine", "8000"): {"engine_images_per_s": "engine_images_per_s"},
    ("approximate", "100", "1"): {
        "one_pass_speedup": "one_pass_speedup",
        "one_pass_speedup_100_masks": "one_pass_speedup_100_masks",
        "one_pass_agreement": "one_pass_agreement",
    },
    ("vocabulary", "1", "3"): {"vocabulary_1000_over_10": "vocabulary_1000_over_10"},
    ("planning", "10000", "100000", "1000000"): {},
}


def main() -> int:
    folder = Path(sys.argv[1]) if sys.argv[1:] else RESULTS.parent
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    results: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": cores(),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__,
        },
        "seconds": {},
        "found": {},
    }  # fmt: skip
    failed = []
    for (module, *arguments), names in SET.items():
        started = time.monotonic()
        command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, file=sys.stderr, end="", flush=True)
        found = {}
        if done.returncode:
            failed.append(module)
        else:
            (found,) = json.loads(done.stdout.splitlines()[-1]).values()
        figures |= {ours: found.get(theirs) for ours, theirs in names.items()} or {module: found}
        results["found"][module] = found
        results["seconds"][module] = round(time.monotonic() - started)
        print(f"{module}: {results['seconds'][module]} s", file=sys.stderr, flush=True)
    (folder / RESULTS.name).write_text(json.dumps(results, indent=1) + "\n")
    draw(results, folder / RESULTS.with_suffix(".svg").name)
    print(json.dumps(figures))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
