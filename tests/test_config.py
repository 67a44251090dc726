"""Settings: the paper's defaults, and refusal of what cannot be meant."""

from importlib import import_module
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.cli import COMMANDS
from schemas.annotate_config import AnnotateConfig
from schemas.demo_config import DemoConfig
from schemas.evaluate_config import EvaluateConfig
from schemas.report_config import ReportConfig

REQUIRED = {"source": "photos", "vocabulary": "classes.yaml", "output": "labels"}


def test_the_defaults_are_those_of_the_paper():
    config = AnnotateConfig(**REQUIRED)
    assert (config.mask_threshold, config.mask_fill, config.mask_expand_ratio) == (0.5, "mean", 1.0)
    assert (config.mask_matting, config.ensemble, config.ensemble_weight) == (False, True, 0.8)
    assert (config.proposer, config.classifier, config.prompts) == ("maskformer", "crops", "single")


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_a_required_setting_has_no_default(missing):
    with pytest.raises(ValidationError, match=missing):
        AnnotateConfig(**{name: value for name, value in REQUIRED.items() if name != missing})


@pytest.mark.parametrize(
    "setting, value",
    [
        ("mask_treshold", 0.5),
        ("mask_threshold", 0),
        ("mask_threshold", 1),
        ("mask_fill", "grey"),
        ("mask_expand_ratio", 0.9),
        ("ensemble_weight", 1.1),
        ("ensemble_weight", -0.1),
        ("min_score", 2),
        ("short_edge", 0),
        ("max_image_pixels", 0),
        ("max_image_bytes", -1),
        ("propose_actors", 0),
        ("classify_batch", 0),
        ("propose_gpus", -1),
        ("mask_precision", "float64"),
        ("rows_per_file", 0),
        ("max_bad_fraction", 1.5),
        ("ensemble_weight", "heavy"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(setting, value):
    with pytest.raises(ValidationError, match=setting):
        AnnotateConfig(**REQUIRED, **{setting: value})


def test_edges_must_be_ordered():
    with pytest.raises(ValidationError, match="short_edge 640 is above long_edge 320"):
        AnnotateConfig(**REQUIRED, short_edge=640, long_edge=320)
    config = AnnotateConfig(**REQUIRED, short_edge=320, long_edge=320)
    assert (config.short_edge, config.long_edge) == (320, 320)


def test_a_config_cannot_be_changed_and_survives_json():
    config = AnnotateConfig(**REQUIRED, extensions=("jpg",), short_edge=64)
    with pytest.raises(ValidationError, match="frozen"):
        config.source = "elsewhere"
    assert AnnotateConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "config", [AnnotateConfig, EvaluateConfig, ReportConfig, DemoConfig], ids=lambda c: c.__name__
)
def test_every_setting_is_described(config):
    assert config.__doc__
    for name, field in config.model_fields.items():
        assert field.description, name


def test_paths_are_paths_and_urls_stay_text():
    config = AnnotateConfig(source="s3://b//x", vocabulary="./c.yaml", output="s3://b/labels")
    assert (config.source, config.vocabulary) == ("s3://b//x", Path("c.yaml"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"propose_resources": {"propose": 1}}, "propose_resources is of a cluster"),
        ({"classify_accelerator": "L4"}, "classify_accelerator is of a cluster"),
        ({"ship_code": True}, "ship_code is of a cluster"),
        ({"address": "auto", "classify_resources": {"GPU": 1}}, "classify_resources has GPU=1"),
        ({"address": "auto", "propose_resources": {"propose": 0}}, "propose_resources has propose"),
    ],
    ids=["resources here", "a card here", "code here", "GPUs by another name", "nothing of it"],
)
def test_what_is_of_a_cluster_is_refused_elsewhere(settings, message):
    with pytest.raises(ValidationError, match=message):
        AnnotateConfig(**REQUIRED, **settings)


def test_pools_of_a_cluster_may_ask_for_machines_of_their_kind():
    config = AnnotateConfig(
        **REQUIRED, address="auto", propose_resources={"propose": 0.5}, propose_accelerator="L40S"
    )
    assert (config.propose_resources, config.classify_resources) == ({"propose": 0.5}, {})


@pytest.mark.parametrize("place", sorted({command.config for command in COMMANDS.values()}))
def test_a_url_is_no_path_of_this_machine(place):
    """Or it would become a folder `s3:` of the working directory."""
    module, _, name = place.partition(":")
    model = getattr(import_module(f"schemas.{module}"), name)
    for setting, field in model.model_fields.items():
        if "Path" not in str(field.annotation) and not setting.endswith("truth"):
            continue
        url = "s3://bucket/x"
        with pytest.raises(ValidationError) as caught:
            model.model_validate({setting: [url] if "tuple" in str(field.annotation) else url})
        told = [error["msg"] for error in caught.value.errors() if error["loc"][0] == setting]
        assert told == ["Value error, must be a path on this machine, not a URL"], setting
