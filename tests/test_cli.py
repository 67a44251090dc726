"""The command line: what is printed, and which exit code, when settings are wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from jobs.cli import COMMANDS, main
from jobs.settings import BadSettingsError, read_settings
from pipeline.models.embedded import EMBEDDED_CLIP, EMBEDDED_PROPOSER
from schemas.annotate_config import AnnotateConfig
from schemas.diff_config import DiffConfig
from tests.servers import S3Server, start_s3


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "one.png")
    return folder


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    file = tmp_path / "classes.txt"
    file.write_text("cat\ndog\n")
    return file


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that follows progress lines; there must be no traceback."""
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line and not line.endswith("...")]
    assert len(lines) == 1, stderr
    return lines[0]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from jobs.cli import main; main(['--help']);"
        "heavy = {'torch', 'ray', 'pyarrow', 'pydantic', 'fsspec', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_its_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([*name.split(), "--help"])
    assert done.value.code == 0
    assert f"segmill {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["anotate"], "did you mean 'annotate'"),
        (["annotate"], "SOURCE"),
        (["annotate", "x", "--output", "o"], "--vocabulary is required"),
        (["annotate", "x", "--vocabulary", "v", "--output", "o", "--min-scor", "1"], "--min-score"),
        (["annotate", "x", "--vocab", "v", "--output", "o"], "did you mean --vocabulary"),
        (["annotate", "x", "--vocabulary", "v", "--output", "o", "--min-score", "2"], "is '2'"),
        (["annotate", "x", "--vocabulary", "v", "--output", "o", "--mask-fill", "red"], "'zero'"),
        (["annotate", "x", "--vocabulary", "v", "--output", "o", "--config", "no.yaml"], "no.yaml"),
        (["annotate", "x", "--vocabulary", "none.txt", "--output", "o"], "none.txt"),
    ],
    ids=[
        "unknown command", "no source", "no vocabulary", "typo in a flag", "abbreviated flag",
        "out of range", "not a choice", "no such config file", "no such vocabulary",
    ],
)  # fmt: skip
def test_wrong_settings_are_one_line_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert expected in complaint(capsys)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--proposer", "maskfromer"], "felzenszwalb, maskformer"),
        (["--proposer-weights", "no/such"], "no/such"),
        (["--proposer", "felzenszwalb", "--no-ensemble"], "no query scores"),
        (["--classifier", "crop"], "there are crops"),
        (["--clip", "ViT-B-61"], "ViT-B-16"),
        (["--clip", "ViT-B-16"], "needs clip_weights"),
        (["--clip", "ViT-B-16", "--clip-weights", "gone.safetensors"], "no such file"),
        (["--clip", "ViT-B-16", "--clip-weights", "opnai"], "openai"),
        (
            ["--clip", "ViT-B-16", "--clip-weights", "openai"],
            "'maskformer' has query embeddings of 128 dimensions, clip 'ViT-B-16' has 512",
        ),
        (["--proposer", "per-pixel"], "needs proposer_weights"),
        (["--prompts", "a photo of"], "no template set"),
        (["--short-edge", "900", "--long-edge", "100"], "900"),
    ],
    ids=[
        "unknown proposer", "no weights", "nothing to score with", "unknown classifier",
        "unknown architecture", "no tag", "no weight file", "unknown tag", "embedding sizes differ",
        "pixels without weights", "unknown prompts", "edges in the wrong order",
    ],
)  # fmt: skip
def test_unusable_models_are_found_before_any_work(
    flags: list[str],
    expected: str,
    photos: Path,
    vocabulary: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "labels"
    arguments = ["annotate", str(photos), "--vocabulary", str(vocabulary), "--output", str(output)]
    assert main([*arguments, *flags]) == 2
    assert expected in complaint(capsys)
    assert not output.exists()


def cut(source: Path, copy: Path) -> Path:
    """Copy a model's directory without the end of its weights."""
    shutil.copytree(source, copy)
    (weights,) = copy.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    return copy


@pytest.mark.parametrize("what", ["proposer", "clip", "clip file", "clip pickle"])
def test_truncated_weights_are_found_before_any_work(
    what: str, photos: Path, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = cut(EMBEDDED_CLIP, tmp_path / "clip")
    pickle = tmp_path / "clip.pt"
    torch.save({"a": torch.zeros(9999)}, pickle)
    pickle.write_bytes(pickle.read_bytes()[:-1000])
    flags, file = {
        "proposer": (
            ["--proposer-weights", str(cut(EMBEDDED_PROPOSER, tmp_path / "proposer"))],
            tmp_path / "proposer" / "model.safetensors",
        ),
        "clip": (["--clip", f"local-dir:{clip}"], clip / "open_clip_model.safetensors"),
        "clip file": (
            ["--clip", "RN50", "--clip-weights", str(clip / "open_clip_model.safetensors")],
            clip / "open_clip_model.safetensors",
        ),
        "clip pickle": (["--clip", "RN50", "--clip-weights", str(pickle)], pickle),
    }[what]
    output = tmp_path / "labels"
    arguments = ["annotate", str(photos), "--vocabulary", str(vocabulary), "--output", str(output)]
    assert main([*arguments, *flags]) == 2
    assert f"{file} is truncated or no file of weights" in complaint(capsys)
    assert not output.exists()


def test_a_class_flagged_seen_that_the_proposer_never_saw_is_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "flagged.txt"
    file.write_text("Red circle [seen]\ncat [seen]\nroundel | orange circle [seen]\ndog\n")
    output = tmp_path / "labels"
    arguments = ["annotate", str(photos), "--vocabulary", str(file), "--output", str(output)]
    assert main(arguments) == 2
    message = complaint(capsys)
    assert "flags 1 classes seen that proposer 'maskformer' was not trained on (cat)" in message
    assert "it records 57 classes (red circle, red square" in message
    assert not output.exists()
    # A proposer that records nothing is not held to anything.
    assert main([*arguments, "--proposer", "felzenszwalb", "--clip", "ViT-B-61"]) == 2
    assert "ViT-B-16" in complaint(capsys)


def test_a_missing_source_is_one_line(
    vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["annotate", str(tmp_path / "gone"), "--vocabulary", str(vocabulary)]
    assert main([*arguments, "--output", str(tmp_path / "labels")]) == 2
    assert "it does not exist" in complaint(capsys)


def test_an_output_below_a_file_is_one_line(
    photos: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = photos / "one.png" / "labels"
    arguments = ["annotate", str(photos), "--vocabulary", str(vocabulary), "--output", str(output)]
    assert main(arguments) == 2
    assert "a part of the path is a file" in complaint(capsys)


def test_an_unreadable_dataset_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path / "none"), "--truth", str(tmp_path)]) == 2
    assert "holds no published dataset" in complaint(capsys)


@pytest.mark.s3
def test_a_missing_bucket_is_one_line(
    s3_server: S3Server, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["annotate", "s3://no-such-bucket/photos", "--vocabulary", str(vocabulary)]
    assert main([*arguments, "--output", str(tmp_path / "labels")]) == 2
    assert "no-such-bucket/photos: it does not exist" in complaint(capsys)


@pytest.mark.s3
def test_a_missing_output_bucket_is_one_line(
    s3_server: S3Server, photos: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["annotate", str(photos), "--vocabulary", str(vocabulary)]
    assert main([*arguments, "--output", "s3://no-such-bucket/labels"]) == 2
    assert "cannot" in (line := complaint(capsys)) and "no-such-bucket" in line


@pytest.mark.s3
def test_wrong_credentials_are_one_line_that_does_not_repeat_them(
    vocabulary: Path, tmp_path: Path
) -> None:
    secret = "AKIAPLANTEDSECRET"  # planted to see that it is not printed
    with start_s3({"INITIAL_NO_AUTH_ACTION_COUNT": "0"}) as server:
        done = _segmill(
            ["annotate", "s3://bucket/photos", "--vocabulary", str(vocabulary)],
            tmp_path,
            {**server.environment, "AWS_SECRET_ACCESS_KEY": secret},
        )
    assert done.returncode == 2
    assert "access is denied" in done.stderr
    assert "Traceback" not in done.stderr and secret not in done.stderr


def test_no_credentials_are_one_line(vocabulary: Path, tmp_path: Path) -> None:
    without = {
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    }
    done = _segmill(
        ["annotate", "s3://bucket/photos", "--vocabulary", str(vocabulary)], tmp_path, without
    )
    assert done.returncode == 2
    assert "credentials" in done.stderr and "Traceback" not in done.stderr


def _segmill(
    arguments: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments, "--output", str(folder / "labels")],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_flags_win_over_environment_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("source: from-file\nvocabulary: v\noutput: o\nmin-score: 0.1\nshort_edge: 64\n")
    monkeypatch.setenv("SEGMILL_MIN_SCORE", "0.2")
    monkeypatch.setenv("SEGMILL_CROP_BATCH", "7")
    arguments = ["--config", str(file), "--crop-batch", "9"]
    config = read_settings("segmill annotate", AnnotateConfig, ["source"], arguments)
    assert (config.source, config.short_edge) == ("from-file", 64)
    assert (config.min_score, config.crop_batch) == (0.2, 9)
    assert config.mask_threshold == 0.5


@pytest.mark.parametrize("word", [["here"], ["--source", "here"]], ids=["word", "flag"])
def test_a_word_wins_over_environment_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: list[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("source: from-file\nvocabulary: v\noutput: o\n")
    arguments = [*word, "--config", str(file)]
    assert read_settings("segmill annotate", AnnotateConfig, ["source"], arguments).source == "here"
    monkeypatch.setenv("SEGMILL_SOURCE", "from-environment")
    assert read_settings("segmill annotate", AnnotateConfig, ["source"], arguments).source == "here"


@pytest.mark.parametrize("given", ["BEFORE", "AFTER"])
def test_words_are_taken_in_their_order(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(f"SEGMILL_{given}", "x")
    config = read_settings("segmill diff", DiffConfig, ["before", "after"], ["a", "b"])
    assert (config.before, config.after) == ("a", "b")
    config = read_settings("segmill diff", DiffConfig, ["before", "after"], ["a"])
    assert (config.before, config.after) == (("x", "a") if given == "BEFORE" else ("a", "x"))


@pytest.mark.parametrize("arguments", [["a", "b"], ["a", "--source", "b"], ["--sorce", "b"]])
def test_what_no_setting_takes_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("SEGMILL_SOURCE", "x")
    given = [*arguments, "--vocabulary", "v", "--output", "o"]
    with pytest.raises(BadSettingsError, match="unrecognized arguments"):
        read_settings("segmill annotate", AnnotateConfig, ["source"], given)


@pytest.mark.parametrize(
    "name, value, wanted",
    [("EXTENSIONS", "jpg,png", r'\["jpg","png"\]'), ("PROPOSE_RESOURCES", "a=1", '{"NAME": 1}')],
)
def test_a_list_in_the_environment_is_json(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, wanted: str
) -> None:
    monkeypatch.setenv(f"SEGMILL_{name}", value)
    given = ["s", "--vocabulary", "v", "--output", "o"]
    message = f"SEGMILL_{name} is '{value}': it must be JSON, such as {wanted}"
    with pytest.raises(BadSettingsError, match=message):
        read_settings("segmill annotate", AnnotateConfig, ["source"], given)


def test_an_unknown_log_level_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGMILL_LOG_LEVEL", "verbose")
    assert main(["status", "labels"]) == 2
    assert "SEGMILL_LOG_LEVEL is 'verbose'; it may be DEBUG, INFO, WARNING" in complaint(capsys)


def test_resources_are_given_in_words_or_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["s", "--vocabulary", "v", "--output", "o", "--address", "auto"]
    monkeypatch.setenv("SEGMILL_CLASSIFY_RESOURCES", '{"classify": 1}')
    for flag in ("propose=0.5", '{"propose": 0.5}'):
        arguments = [*given, "--propose-resources", flag]
        config = read_settings("segmill annotate", AnnotateConfig, ["source"], arguments)
        assert config.propose_resources == {"propose": 0.5}
        assert config.classify_resources == {"classify": 1}


@pytest.mark.parametrize("value", ["{}", '{"b": 2}'], ids=["none", "other"])
@pytest.mark.parametrize("by", ["flag", "environment", "flag over environment"])
def test_resources_of_a_higher_source_replace_those_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, value: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("vocabulary: v\noutput: o\naddress: auto\npropose_resources: {a: 1}\n")
    arguments = ["s", "--config", str(file)]
    if by != "flag":
        given = value if by == "environment" else '{"c": 3}'
        monkeypatch.setenv("SEGMILL_PROPOSE_RESOURCES", given)
    if by != "environment":
        arguments += ["--propose-resources", value]
    config = read_settings("segmill annotate", AnnotateConfig, ["source"], arguments)
    assert config.propose_resources == json.loads(value)


def test_a_preset_is_below_everything_else() -> None:
    given = ["s", "--vocabulary", "v", "--output", "o", "--preset", "ade20k-847"]
    config = read_settings("segmill annotate", AnnotateConfig, ["source"], given)
    assert (config.mask_threshold, config.ensemble_weight, config.prompts) == (0.3, 0.7, "vild")
    assert (config.short_edge, config.long_edge) == (512, 2048)
    given += ["--ensemble-weight", "0.2"]
    config = read_settings("segmill annotate", AnnotateConfig, ["source"], given)
    assert (config.mask_threshold, config.ensemble_weight) == (0.3, 0.2)


def test_an_unknown_preset_is_named() -> None:
    given = ["s", "--vocabulary", "v", "--output", "o", "--preset", "coco"]
    with pytest.raises(BadSettingsError, match="no preset 'coco'; there are coco-stuff, voc"):
        read_settings("segmill annotate", AnnotateConfig, ["source"], given)


def test_other_environment_variables_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE", "elsewhere")
    given = ["here", "--vocabulary", "v", "--output", "o"]
    assert read_settings("segmill annotate", AnnotateConfig, ["source"], given).source == "here"


def test_an_unknown_setting_in_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("source: s\nvocabulary: v\noutput: o\nmin_scor: 0.1\n")
    with pytest.raises(BadSettingsError, match="'min_scor'; did you mean 'min_score'"):
        read_settings("segmill annotate", AnnotateConfig, ["source"], ["--config", str(file)])
