"""What `segmill explain` takes, on a dataset of thousands of images with kept embeddings.

    python -m tests.bench.explain [images] [pixels]

Rows of 24 synthetic scenes with the embedded models are written again and again under other
names, in both encodings. `work_s` is what the function takes for random pixels, by the images' URIs
and by their file names (median and largest, processor seconds of one process without a GPU);
`command_s` is one call of the command, of which `import_s` goes into imports.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import annotation_flows as flows
from jobs.annotation_plan import AnnotationPlan
from jobs.explain import explain
from pipeline.dataset import publish
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.parts import write_part
from pipeline.stages.classify import Classify
from pipeline.stages.propose import Propose
from pipeline.text_vectors import write_texts
from schemas.annotate_config import AnnotateConfig
from schemas.annotation import ANNOTATED_AND_EMBEDDED, image_id
from schemas.explain_config import ExplainConfig
from schemas.manifest import Changes, Counts, Encoding, Manifest
from tests.bench.scenes import decoded

SEED = 8_900  # scenes of no training, validation or test range
SCENES = 24
ROWS_PER_PART = {"exact": 64, "compact": 1024}  # as a run writes them


def main() -> None:
    images, pixels = (int(value) for value in sys.argv[1:3] or ("2048", "20"))
    with tempfile.TemporaryDirectory() as folder:
        found = {
            encoding: measure(f"{folder}/{encoding}", encoding, images, pixels)
            for encoding in ("exact", "compact")
        }
    print(json.dumps({"images": images, "pixels": pixels, **found}))


def measure(dataset: str, encoding: Encoding, images: int, pixels: int) -> dict[str, Any]:
    publish_repeated(dataset, encoding, images)
    rng = np.random.default_rng(0)
    places = [
        (int(n), (int(column), int(line)))
        for n, column, line in rng.integers((0, 0, 0), (images, 120, 120), (pixels, 3))
    ]
    by_uri = [timed(dataset, f"file:///{n}.png", at) for n, at in places]
    by_name = [timed(dataset, f"{n}.png", at) for n, at in places]
    words = ["explain", dataset, "--image", "7.png", "--at", "60,60"]
    return {
        "work_s": [round(statistics.median(by_uri), 3), round(max(by_uri), 3)],
        "work_by_name_s": [round(statistics.median(by_name), 3), round(max(by_name), 3)],
        "command_s": round(spent("-m", "jobs.cli", *words), 2),
        "import_s": round(spent("-c", "import jobs.cli, jobs.explain"), 2),
    }


def timed(dataset: str, image: str, at: tuple[int, int]) -> float:
    started = time.process_time()
    found = explain(ExplainConfig(dataset=dataset, image=image, at=at))
    seconds = time.process_time() - started
    if found.terms is None:
        raise AssertionError(found.unknown)
    return seconds


def spent(*words: str) -> float:
    """Return the processor seconds of a process."""
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def publish_repeated(dataset: str, encoding: Encoding, images: int) -> None:
    """Label scenes, and publish their rows under as many names as asked for."""
    config = AnnotateConfig(source="scenes", vocabulary=EMBEDDED_VOCABULARY, output=dataset)
    plan = AnnotationPlan.of(config)
    prompts = (plan.query_prompts, plan.region_prompts)
    texts = flows.encode_vocabulary(plan.clip, plan.vocabulary, prompts)
    classify = Classify(flows._embed(plan), flows.label_stage(plan, texts, "run-1"), encoding)
    propose = Propose("maskformer", None, plan.proposer.divisor, config.mask_precision)
    rows = classify(propose(decoded(SEED, SCENES))).to_pylist()
    parts = []
    for start in range(0, images, ROWS_PER_PART[encoding]):
        copies = [
            {
                **rows[n % SCENES],
                "uri": f"file:///{n}.png",
                "image_id": image_id(f"file:///{n}.png"),
            }
            for n in range(start, min(start + ROWS_PER_PART[encoding], images))
        ]
        table = pa.Table.from_pylist(copies, schema=ANNOTATED_AND_EMBEDDED)
        parts.append(write_part(dataset, "run-1", table))
    write_texts(dataset, plan.fingerprints.label, texts)
    models = {
        "proposal_fingerprint": plan.fingerprints.proposal,
        "embedding_fingerprint": plan.fingerprints.embedding,
        "divisor": plan.proposer.divisor,
        **plan.deciding,
    }
    publish(
        dataset,
        Manifest(
            version=1, created="2026-01-01T00:00:00Z", run_id="run-1", lock=1, source="scenes",
            fingerprint=plan.fingerprints.label, vocabulary=plan.vocabulary,
            counts=Counts(inventory=images, labelled=images, quarantined=0, reasons={}),
            changes=Changes(kept=0, done=images, from_embeddings=0, removed=0),
            images=tuple(part.images for part in parts),
            embeddings=tuple(part.embeddings for part in parts), config={}, models=models,
            software={},
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
