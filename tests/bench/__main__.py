"""The set of benchmarks, one after the other, each in a process of its own.

    python -m tests.bench

What they measure and how is in their files. The last line is JSON with the figures that the README
names; null where the sample data is missing. Everything that they said goes to stderr.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

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
        "one_pass_agreement": "one_pass_agreement",
    },
    ("vocabulary", "1", "3"): {"vocabulary_1000_over_10": "vocabulary_1000_over_10"},
    ("planning", "10000", "100000", "1000000"): {},
}


def main() -> int:
    figures: dict[str, Any] = {}
    for (module, *arguments), names in SET.items():
        started = time.monotonic()
        command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, file=sys.stderr, end="", flush=True)
        (found,) = (
            json.loads(done.stdout.splitlines()[-1]).values() if not done.returncode else [{}]
        )
        figures |= {ours: found.get(theirs) for ours, theirs in names.items()} or {module: found}
        took = time.monotonic() - started
        print(f"{module}: {took:.0f} s, exit code {done.returncode}", file=sys.stderr, flush=True)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
