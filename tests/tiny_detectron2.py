"""Tiny detectron2 models of every real architecture, with random weights, saved as a user has them.

detectron2 is imported where a model is made: the configurations are plain mappings.
"""

from copy import deepcopy
from importlib import import_module

import torch
import yaml

LEVELS = ["res2", "res3", "res4", "res5"]
PYRAMID = ["p2", "p3", "p4", "p5"]
MODULE = "tests.detectron2_architecture"
_MODEL = {
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
    "RESNETS": {
        "DEPTH": 50,
        "OUT_FEATURES": LEVELS,
        "STEM_OUT_CHANNELS": 8,
        "RES2_OUT_CHANNELS": 8,
        "WIDTH_PER_GROUP": 4,
    },
    "FPN": {"IN_FEATURES": LEVELS, "OUT_CHANNELS": 8},
    "ANCHOR_GENERATOR": {"SIZES": [[8], [16], [32], [64], [128]]},
    "RPN": {"IN_FEATURES": [*PYRAMID, "p6"], "POST_NMS_TOPK_TEST": 20},
    "ROI_HEADS": {
        "NAME": "StandardROIHeads",
        "IN_FEATURES": PYRAMID,
        "NUM_CLASSES": 3,
        "SCORE_THRESH_TEST": 0.0,
    },
    "ROI_BOX_HEAD": {
        "NAME": "FastRCNNConvFCHead",
        "NUM_FC": 1,
        "FC_DIM": 16,
        "POOLER_RESOLUTION": 3,
    },
    "ROI_MASK_HEAD": {
        "NAME": "MaskRCNNConvUpsampleHead",
        "NUM_CONV": 1,
        "CONV_DIM": 8,
        "POOLER_RESOLUTION": 7,
    },
    "MASK_ON": True,
    "SEM_SEG_HEAD": {"NUM_CLASSES": 5, "CONVS_DIM": 8, "NORM": ""},
    # A PanopticFPN drops small regions: those of a tiny image are.
    "PANOPTIC_FPN": {"COMBINE": {"STUFF_AREA_LIMIT": 16, "INSTANCES_CONFIDENCE_THRESH": 0.3}},
}
_INPUT = {"MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 128}

ARCHITECTURES = {
    "mask-rcnn": "GeneralizedRCNN",
    "semantic": "SemanticSegmentor",
    "panoptic": "PanopticFPN",
    "third-party": "Halves",
}


def modules_of(name):
    return (MODULE,) if name == "third-party" else ()


def config_of(name):
    """Return the mapping that config.yaml holds."""
    model = {} if name == "third-party" else deepcopy(_MODEL)
    return {
        "VERSION": 2,
        "MODEL": {"META_ARCHITECTURE": ARCHITECTURES[name], **model},
        "INPUT": dict(_INPUT),
        "TEST": {"DETECTIONS_PER_IMAGE": 10},
    }


def write_config(directory, config):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))


def save_tiny(name, directory):
    """Write config.yaml and model.pth as detectron2's training would."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    write_config(directory, config_of(name))
    cfg = get_cfg()
    for module in modules_of(name):
        import_module(module).add_halves_config(cfg)
    cfg.merge_from_file(str(directory / "config.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("conv3.norm.weight"):
                value.mul_(0.2)  # sixteen blocks on top of each other stay in range
            if key.endswith("mask_head.predictor.weight"):
                value.normal_()  # untrained it is almost 0, and all masks are whole boxes
    torch.save({"model": model.state_dict(), "iteration": 9}, directory / "model.pth")
    return str(directory)
