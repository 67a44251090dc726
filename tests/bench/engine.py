"""How many images a second the engine itself moves: small JPEGs, stages that do nothing.

    python -m tests.bench.engine [images]

Everything else is a run of `annotate` as it is: listing, plan, fetch, decoding in child processes,
two pools of one actor (256 images a call), Parquet files, publication. The rate is the meter's,
from warm pools to the last write; the seconds of the whole run stand beside it.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from jobs import annotation_flows
from jobs.annotate import annotate
from jobs.annotation_run import AnnotateResult
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.synthetic import make_scene
from schemas.annotate_config import AnnotateConfig
from schemas.meter import FlowMeter
from tests.bench.null_stages import NullClassify, NullPropose
from tests.bench.scenes import write_copies

SEED, SIDE = 5_700, 96


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        write_jpegs(Path(folder) / "photos", images)
        print(json.dumps({"engine": figures(Path(folder))}))


def write_jpegs(folder: Path, count: int) -> None:
    """Write small JPEGs, a few pictures many times: what they show is of no interest."""
    files = []
    for index in range(16):
        buffer = BytesIO()
        picture = Image.fromarray(make_scene(SEED, index).image_HW3).resize((SIDE, SIDE))
        picture.save(buffer, "jpeg")
        files.append(buffer.getvalue())
    write_copies(folder, files, count)


def figures(folder: Path) -> dict[str, Any]:
    """Run once with the null stages in the models' place."""
    result, flow = run(
        folder, lambda *_settings: NullPropose(), NullClassify,
        propose_batch=256, classify_batch=256, short_edge=SIDE,
    )  # fmt: skip
    return {
        "images": flow.images,
        "engine_images_per_s": round(flow.images_per_s, 1),
        "ceiling_images_per_s": round(flow.ceiling, 1),
        "binds": flow.binds,
        "cpu_ms_per_image": {
            stage.name: round(1000 * stage.cpu_service_s, 3) for stage in flow.stages
        },
        "seconds": round(result.seconds, 1),
    }


def run(
    folder: Path, propose: Callable[..., Any], classify: type[NullClassify], **settings: Any
) -> tuple[AnnotateResult, FlowMeter]:
    """Label the folder's photos with these stages in the models' place; return what was measured.

    `propose` is called with the settings of the stage that it stands for.
    """

    def make_classify(_embed: Any, label: Any, _keep: Any) -> NullClassify:
        return classify(label.fingerprints, label.run_id)

    for name, stand_in in (("Propose", propose), ("Classify", make_classify)):
        setattr(annotation_flows, name, stand_in)
    config = AnnotateConfig(
        source=str(folder / "photos"),
        vocabulary=EMBEDDED_VOCABULARY,
        output=str(folder / "labels"),
        **settings,
    )
    result = annotate(config)
    assert result.meter is not None and result.counts.labelled == result.counts.inventory
    (flow,) = result.meter.flows
    return result, flow


if __name__ == "__main__":
    main()
