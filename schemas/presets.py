"""The paper's settings per test set (spec 2.6): threshold, ensemble weight, prompts, image sizes;
and per training set (spec 3.1).

Threshold and weight were tuned per test set by the authors. Data sets without seen flags take a
vocabulary without them. Learned prompts are a file, so a preset cannot name them: where the paper
used them, the single template stands until `prompts` or `region_prompts` is given.
"""

from typing import Any, Final

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "coco-stuff": {
        "mask_threshold": 0.5, "ensemble_weight": 0.8, "prompts": "single",
        "short_edge": 640, "long_edge": 2560,
    },
    "voc": {
        "mask_threshold": 0.5, "ensemble_weight": 0.7, "prompts": "single",
        "short_edge": 512, "long_edge": 2048,
    },
    "voc-cross": {
        "mask_threshold": 0.5, "ensemble_weight": 0.4, "prompts": "single",
        "short_edge": 512, "long_edge": 2048,
    },
    "ade20k-150": {
        "mask_threshold": 0.4, "ensemble_weight": 0.5, "prompts": "vild",
        "short_edge": 512, "long_edge": 2048,
    },
    "ade20k-847": {
        "mask_threshold": 0.3, "ensemble_weight": 0.7, "prompts": "vild",
        "short_edge": 512, "long_edge": 2048,
    },
    "cityscapes": {
        "mask_threshold": 0.3, "ensemble_weight": 0.4, "prompts": "vild",
        "short_edge": 1024, "long_edge": 2048,
    },
    "pascal-context-59": {
        "mask_threshold": 0.5, "ensemble_weight": 0.4, "prompts": "vild",
        "short_edge": 512, "long_edge": 2048,
    },
}  # fmt: skip

# Trainings of the paper (spec 3.1); `coco-stuff-cross` is of the tests on other data sets.
TRAINING_PRESETS: Final[dict[str, dict[str, Any]]] = {
    "coco-stuff": {
        "steps": 60_000, "batch_size": 32, "crop_size": 640, "max_long_edge": 2560,
        "short_edge": 640, "long_edge": 2560, "prompts": "single",
    },
    "coco-stuff-cross": {
        "steps": 120_000, "batch_size": 32, "crop_size": 640, "max_long_edge": 2560,
        "short_edge": 640, "long_edge": 2560, "prompts": "vild",
    },
    "voc": {
        "steps": 20_000, "batch_size": 16, "crop_size": 512, "max_long_edge": 2048,
        "short_edge": 512, "long_edge": 2048, "prompts": "single",
    },
}  # fmt: skip
