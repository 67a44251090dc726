"""The rows of the paper's tables: that they parse, say what the spec says, and what hours take."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

import schemas.presets
from jobs.cli import COMMANDS, main
from jobs.presets import PROMPTS, PROPOSALS, command_lines, presets, training_of
from jobs.settings import BadSettingsError, read_settings
from pipeline.datasets import DATASETS
from schemas.annotate_config import AnnotateConfig
from schemas.errors import SettingsError
from schemas.evaluate_config import EvaluateConfig
from schemas.presets import NAMES, Preset, load_preset
from schemas.presets_config import PresetsConfig
from schemas.prompt_training_config import TrainPromptsConfig
from schemas.training_config import TrainProposalsConfig

MODELS = {
    PROPOSALS: TrainProposalsConfig,
    PROMPTS: TrainPromptsConfig,
    "annotate": AnnotateConfig,
    "evaluate": EvaluateConfig,
}
PRESET_FILES = [f"{name}.yaml" for name in NAMES]


def test_every_file_is_a_preset_and_every_preset_a_file():
    files = Path(schemas.presets.__file__).parent.glob("*.yaml")
    assert sorted(file.name for file in files) == sorted(PRESET_FILES)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_row_parses_as_it_is_printed(name):
    preset = load_preset(name)
    lines = [shlex.split(line) for line in command_lines(name, preset)]
    assert len(lines) == len(preset.steps) >= 1
    for words, (command, step) in zip(lines, preset.steps.items(), strict=True):
        start = 1 + len(command.split())
        assert words[:start] == ["segmill", *command.split()]
        config = read_settings(
            " ".join(words[:start]), MODELS[command], COMMANDS[command].positional, words[start:]
        )
        expected = MODELS[command].model_validate({**step.settings, **step.given})
        assert config == expected
        told = config.model_dump(mode="json")
        assert {key: told[key] for key in step.settings.keys() - step.given.keys()} == {
            key: step.settings[key] for key in step.settings.keys() - step.given.keys()
        }


@pytest.mark.parametrize("name", NAMES)
def test_the_data_of_a_row_can_be_prepared(name):
    for step in load_preset(name).steps.values():
        for value in step.given.values():
            if str(value).startswith("DATA/") and not str(value).endswith(".pkl"):
                assert value.split("/")[1] in DATASETS


@pytest.mark.parametrize(
    "name, threshold, weight, prompts, edges",
    [
        ("coco-stuff", 0.5, 0.8, "single", (640, 2560)),
        ("voc", 0.5, 0.7, "single", (512, 2048)),
        ("ade20k-150", 0.4, 0.5, "vild", (512, 2048)),
        ("ade20k-847", 0.3, 0.7, "vild", (512, 2048)),
        ("cityscapes", 0.3, 0.4, "vild", (1024, 2048)),
        ("pascal-context-59", 0.5, 0.4, "vild", (512, 2048)),
        ("voc-cross", 0.5, 0.4, "single", (512, 2048)),
    ],
)
def test_annotation_is_that_of_the_spec(name, threshold, weight, prompts, edges):
    """Spec 2.6; edges of 2.1."""
    told = load_preset(name).steps["annotate"].settings
    assert (told["mask_threshold"], told["ensemble_weight"]) == (threshold, weight)
    assert told["prompts"] == prompts
    assert (told["short_edge"], told["long_edge"]) == edges


@pytest.mark.parametrize(
    "name, steps, batch, crop, limit",
    [
        ("coco-stuff", 60_000, 32, 640, 2560),
        ("voc", 20_000, 16, 512, 2048),
        ("coco-stuff-cross", 120_000, 32, 640, 2560),
        ("cityscapes", 120_000, 32, 640, 2560),
        ("voc-cross", 60_000, 32, 640, 2560),
    ],
)
def test_proposals_are_trained_as_in_the_spec(name, steps, batch, crop, limit):
    """Spec 3.1."""
    config = training_of(load_preset(name), PROPOSALS)
    assert (config.steps, config.batch_size) == (steps, batch)
    assert (config.crop_size, config.max_long_edge) == (crop, limit)
    assert config.short_edges == tuple(range(320, 961, 64))
    assert (config.learning_rate, config.weight_decay, config.max_norm) == (1e-4, 1e-4, 0.01)
    assert (config.architecture, config.backbone_factor) == ("r101c", 0.1)


@pytest.mark.parametrize(
    "name, steps, per_class, samples",
    [("coco-stuff", 16_000, 32, 4_992), ("voc", 3_200, 128, 1_920)],
)
def test_prompts_are_learned_as_in_the_spec(name, steps, per_class, samples):
    """Spec 3.2."""
    preset = load_preset(name)
    config = training_of(preset, PROMPTS)
    assert (config.steps, config.batch_size, config.samples_per_class) == (steps, 32, per_class)
    assert preset.seen_classes * per_class == samples
    assert round(steps * 32 / samples, 1) == {"coco-stuff": 102.6, "voc": 53.3}[name]
    assert (config.learning_rate, config.momentum, config.weight_decay) == (0.02, 0.9, 5e-4)
    assert (config.warmup_steps, config.warmup_factor, config.max_norm) == (100, 0.005, 0.01)
    assert (config.vectors, config.augment, config.repeat_samples) == (16, True, True)
    assert (config.region_fill, config.region_shape) == ("reference", "reference")


@pytest.mark.parametrize(
    "name, row, figures",
    [
        ("coco-stuff", "ensemble", {"seen_miou": 39.3, "unseen_miou": 36.3, "hiou": 37.8}),
        ("coco-stuff", "query scores alone", {"seen_miou": 38.7, "unseen_miou": 4.9, "hiou": 8.7}),
        ("coco-stuff", "CLIP alone", {"seen_miou": 26.8, "unseen_miou": 29.7, "hiou": 28.2}),
        ("coco-stuff", "CLIP alone, single template", {"hiou": 18.3}),
        ("coco-stuff", "after self-training", {"unseen_miou": 43.6, "hiou": 41.5}),
        ("voc", "ensemble", {"seen_miou": 83.5, "unseen_miou": 72.5, "hiou": 77.5}),
        ("voc", "after self-training", {"hiou": 79.3}),
        ("cityscapes", "ensemble", {"miou": 34.5}),
        ("pascal-context-59", "ensemble", {"miou": 47.7}),
        ("ade20k-150", "ensemble", {"miou": 20.5}),
        ("ade20k-847", "ensemble", {"miou": 7.0}),
        ("voc-cross", "ensemble", {"miou": 88.4}),
    ],
)
def test_expected_numbers_are_those_of_the_spec(name, row, figures):
    """Spec 6.1 to 6.3."""
    (expected,) = [found for found in load_preset(name).expected if found.name == row]
    assert expected.figures == figures
    annotate = load_preset(name).steps["annotate"]
    AnnotateConfig.model_validate({**annotate.settings, **annotate.given, **expected.changed})


def test_a_presets_file_is_read_by_config_as_well(tmp_path):
    preset = load_preset("cityscapes").model_dump(mode="json", exclude_defaults=True)
    file = tmp_path / "mine.yaml"
    preset["steps"]["annotate"]["settings"]["mask_threshold"] = 0.25
    file.write_text(yaml.safe_dump(preset))
    given = ["s", "--vocabulary", "v", "--output", "o", "--config", str(file)]
    config = read_settings("segmill annotate", AnnotateConfig, ["source"], given)
    assert (config.mask_threshold, config.short_edge) == (0.25, 1024)
    with pytest.raises(BadSettingsError, match="no settings of `report`; it has train proposals"):
        read_settings("segmill report", AnnotateConfig, [], ["--config", str(file)])
    del preset["steps"]["annotate"]["settings"]
    file.write_text(yaml.safe_dump({**preset, "seen_classes": 0}))
    with pytest.raises(BadSettingsError, match=r"mine\.yaml is no preset: seen_classes: "):
        read_settings("segmill annotate", AnnotateConfig, ["source"], given)


def write_run(directory, settings, times, seeds=False):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(settings))
    folder = directory / "seed-0" if seeds else directory
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"step": n, "seconds_per_step": time}) for n, time in enumerate(times)]
    (folder / "log.jsonl").write_text("\n".join(lines))
    return directory


@pytest.fixture
def run(tmp_path):
    """A run of the sizes of `coco-stuff`, with the times that its log holds."""

    def make(name, *times, **changed):
        step = load_preset("coco-stuff").steps[PROPOSALS]
        config = TrainProposalsConfig.model_validate({**step.settings, **step.given})
        return write_run(tmp_path / name, {**config.model_dump(mode="json"), **changed}, times)

    return make


def estimates(**settings):
    return presets(PresetsConfig(**settings)).estimates


def test_hours_are_steps_times_the_time_that_was_given():
    found = estimates(seconds_per_step=0.6, prompt_seconds_per_step=0.3, gpus=8)
    assert found["coco-stuff"][PROPOSALS].gpu_hours == pytest.approx(60_000 * 0.6 * 8 / 3600)
    assert found["voc"][PROMPTS].gpu_hours == pytest.approx(3 * 3_200 * 0.3 * 8 / 3600)


def test_no_hours_are_told_where_nothing_was_measured():
    for trainings in estimates(prompt_seconds_per_step=1.0).values():
        assert trainings[PROPOSALS].gpu_hours is None
        assert trainings[PROPOSALS].why_not == "no step was measured"


def test_times_are_read_from_a_log_where_its_settings_fit(run):
    found = estimates(log=(run("whole", 9.0, 0.5, 0.7, 0.6),))
    assert found["coco-stuff"][PROPOSALS].gpu_hours == pytest.approx(60_000 * 0.65 / 3600)
    assert found["voc"][PROPOSALS].gpu_hours is None
    assert found["voc"][PROPOSALS].why_not == "measured with batch_size 32, not 16"
    small = estimates(log=(run("small", 0.5, batch_size=4),))
    assert small["coco-stuff"][PROPOSALS].why_not == "measured with batch_size 4, not 32"


def test_times_of_prompts_fit_the_number_of_classes(tmp_path):
    step = load_preset("voc").steps[PROMPTS]
    config = TrainPromptsConfig.model_validate({**step.settings, **step.given})
    classes = [{"name": f"{n}", "seen": n < 15} for n in range(20)]
    settings = {**config.model_dump(mode="json"), "classes": classes}
    found = estimates(log=(write_run(tmp_path / "run", settings, [0.1, 0.2, 0.2], seeds=True),))
    assert found["voc"][PROMPTS].gpu_hours == pytest.approx(9_600 * 0.2 / 3600)
    assert found["coco-stuff"][PROMPTS].why_not == "measured with seen classes 15, not 156"


def test_a_directory_that_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(SettingsError, match=r"no output of a training: it has no config\.json"):
        estimates(log=(tmp_path / "no",))
    with pytest.raises(SettingsError, match="holds no time of a step"):
        estimates(log=(run("empty"),))


def test_the_command_prints_numbers_commands_and_hours(capsys):
    assert main(["presets", "voc", "--seconds-per-step", "0.9"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["voc"]["trainings"][PROPOSALS]["gpu_hours"] == 5.0
    assert "ensemble: seen 83.5, unseen 72.5, hIoU 77.5 (paper v2)" in captured.err
    assert "segmill train prompts --preset voc --dataset DATA/voc-2012" in captured.err
    assert main(["presets"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(NAMES)
    assert main(["presets", "vok"]) == 2
    assert "there is no preset 'vok'; there are coco-stuff, voc" in capsys.readouterr().err


def test_a_row_says_where_its_models_come_from():
    assert list(load_preset("ade20k-847").steps) == [PROPOSALS, "annotate", "evaluate"]
    assert list(load_preset("voc-cross").steps) == [PROMPTS, PROPOSALS, "annotate", "evaluate"]
    with pytest.raises(ValueError, match="trained_by"):
        Preset.model_validate({"title": "t", "seen_classes": 1, "steps": {}, "trained_by": "voc"})
