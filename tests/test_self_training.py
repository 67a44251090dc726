"""Self-training: the pseudo-label set pixel by pixel, its account, and the whole command."""

import json
import shutil
from dataclasses import replace

import fsspec
import numpy as np
import pytest

from jobs.annotate import annotate
from jobs.cli import main
from jobs.pseudo_label_set import RECORDS, made_pseudo_set, make_pseudo_set
from jobs.self_training_plan import SelfTrainingPlan
from jobs.train_self_training import train_self_training
from pipeline.dataset import publish, read_manifest, read_rows
from pipeline.datasets.layout import read_dataset, read_split
from pipeline.models.embedded import EMBEDDED_PROPOSER
from pipeline.models.maskformer import load_config
from pipeline.models.weight_cache import FOLDER_VARIABLE
from pipeline.segments import decode_label_map
from pipeline.synthetic import VOCABULARY, make_scene, seen_flags
from pipeline.training.class_cap import ClassCap
from pipeline.training.labelled_images import LabelledImages
from pipeline.truth import read_indices
from schemas.annotate_config import AnnotateConfig
from schemas.errors import (
    ModelError,
    OutputError,
    SettingsError,
    SourceError,
    VocabularyError,
)
from schemas.self_training_config import TrainSelfTrainingConfig
from schemas.vocabulary import Vocabulary
from tests.training_sets import SEED, add, write_vocabulary

pytestmark = pytest.mark.ray

SEEN = np.asarray(seen_flags())
UNSEEN = set(np.flatnonzero(~SEEN).tolist())
GOOD, BROKEN, LATE = 5, "broken", "late"


class Quiet:
    def say(self, what):
        pass

    def start(self, stages, total, unit="images", done=0):
        pass

    def update(self, done, note=""):
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory, ray_session):
    """A data set of which all images but one broken and one late one are annotated."""
    root = tmp_path_factory.mktemp("world")
    for index in range(GOOD):
        scene = make_scene(SEED, 100 + index)
        labels_HW = scene.label_map_HW.copy()
        labels_HW[:3] = 255  # void
        add(root / "set", f"{index:03}", scene.image_HW3, labels_HW)
    add(root / "set", BROKEN, np.zeros((64, 64, 3)), np.zeros((64, 64)))
    (root / "set" / "images" / "train" / f"{BROKEN}.png").write_bytes(b"no image")
    for kind in ("images", "masks"):
        folder = root / "set" / kind / "val"
        folder.mkdir()
        for index in range(2):
            shutil.copy(root / "set" / kind / "train" / f"{index:03}.png", folder)
    write_vocabulary(root / "set" / "vocabulary.yaml", VOCABULARY, seen_flags())
    annotate(
        AnnotateConfig(
            source=str(root / "set" / "images" / "train"),
            vocabulary=root / "set" / "vocabulary.yaml",
            output=str(root / "labels"),
            keep_embeddings="exact",
            max_bad_fraction=1.0,
        )
    )
    add(root / "set", LATE, np.zeros((64, 64, 3)), np.zeros((64, 64)))
    return root


def defaults(world):
    return {
        "labels": str(world / "labels"),
        "dataset": world / "set",
        "steps": 1,
        "batch_size": 2,
        "crop_size": 96,
        "short_edges": (96,),
        "gpus_per_worker": 0,
    }


@pytest.fixture
def settings(world, tmp_path):
    def make(name="run", **changed):
        values = {**defaults(world), "output": tmp_path / name, **changed}
        return TrainSelfTrainingConfig(**values)

    return make


@pytest.fixture
def maps(settings):
    """Make the pseudo-label set of settings; return its plan, summary and maps by stem."""

    def make(name="run", **changed):
        plan = SelfTrainingPlan.of(settings(name, **changed))
        plan.begin()
        summary = make_pseudo_set(plan, Quiet())
        pairs = read_split(plan.pseudo_directory, "train")
        return plan, summary, {pair.mask.stem: read_indices(pair.mask) for pair in pairs}

    return make


@pytest.fixture(scope="module")
def stored(world):
    """The label maps of the dataset, by stem."""
    manifest = read_manifest(str(world / "labels"))
    return {
        row["uri"].rpartition("/")[2].removesuffix(".png"): decode_label_map(
            row["segments"], (row["height"], row["width"])
        )
        for table in read_rows(str(world / "labels"), manifest)
        for row in table.to_pylist()
        if row["status"] == "labelled"
    }


def truth(world, name):
    return read_indices(world / "set" / "masks" / "train" / f"{name}.png")


def known(truth_HW):
    """Where the truth is a seen class."""
    return (truth_HW < len(SEEN)) & SEEN[np.minimum(truth_HW, len(SEEN) - 1)]


def test_truth_is_pasted_over_seen_pixels_and_unseen_classes_share_the_rest(maps, stored, world):
    _, summary, found = maps()
    assert set(found) == {f"{index:03}" for index in range(GOOD)}
    assert summary.ignored_share == 0
    agreed = 0
    for name, labels_HW in found.items():
        truth_HW = truth(world, name)
        is_known_HW = known(truth_HW)
        assert np.array_equal(labels_HW[is_known_HW], truth_HW[is_known_HW])
        assert set(np.unique(labels_HW[~is_known_HW])) <= UNSEEN
        # The best class of all, where it is an unseen one, is the best unseen one.
        same_HW = ~is_known_HW & ~SEEN[stored[name]]
        assert np.array_equal(labels_HW[same_HW], stored[name][same_HW])
        agreed += int(same_HW.sum())
    assert agreed > 1_000


def test_without_the_prior_the_rest_is_labelled_as_in_the_dataset(maps, stored, world):
    _, _, found = maps(prior="none")
    for name, labels_HW in found.items():
        truth_HW = truth(world, name)
        assert np.array_equal(labels_HW, np.where(known(truth_HW), truth_HW, stored[name]))


@pytest.mark.parametrize("how", [{"reject_share": 0.6}, {"reject_threshold": 0.024}])
def test_rejected_pixels_are_ignored_and_no_truth_is_rejected(maps, world, how):
    _, _, everything = maps("all")
    _, summary, found = maps("some", **how)
    rejected = pixels = 0
    for name, labels_HW in found.items():
        is_known_HW = known(truth(world, name))
        is_rejected_HW = labels_HW == 255
        assert not (is_rejected_HW & is_known_HW).any()
        assert np.array_equal(labels_HW[~is_rejected_HW], everything[name][~is_rejected_HW])
        rejected += int(is_rejected_HW.sum())
        pixels += int((~is_known_HW).sum())
    assert 0.02 < rejected / pixels < 0.98
    assert summary.ignored_share == pytest.approx(
        rejected / sum(labels_HW.size for labels_HW in found.values())
    )


def test_a_capped_class_keeps_the_image_of_its_best_score(maps, world):
    plan, before, everything = maps("all")
    _, summary, found = maps("capped", max_images_per_class=1)
    assert max(before.pseudo_images.values()) > 1
    assert max(summary.pseudo_images.values()) == 1
    assert sum(summary.capped.values()) == sum(before.pseudo_images.values()) - sum(
        summary.pseudo_images.values()
    )
    scores = {}
    for line in (plan.pseudo_directory / RECORDS).read_text().splitlines():
        for image in json.loads(line)["images"]:
            for entry in image["classes"]:
                place = scores.setdefault(entry["class_index"], {})
                place[image["name"].removesuffix(".png")] = entry["score"]
    for class_index in UNSEEN & scores.keys():
        best = max(scores[class_index], key=scores[class_index].get)
        for name, labels_HW in found.items():
            was_HW = everything[name] == class_index
            assert (labels_HW[was_HW] == (class_index if name == best else 255)).all()


def test_a_cap_does_not_depend_on_the_order():
    entries = [(0.5, "b"), (0.7, "c"), (0.5, "a"), (0.1, "d")]
    for order in (entries, entries[::-1]):
        cap = ClassCap(2)
        for score, name in order:
            cap.add(3, score, name)
        assert [name for score, name in entries if cap.keeps(3, score, name)] == ["b", "c"]


def test_images_without_labels_are_recorded_with_the_reason(maps):
    plan, summary, _ = maps()
    lines = (plan.pseudo_directory / "skipped.jsonl").read_text().splitlines()
    reasons = {line["name"]: line["reason"] for line in map(json.loads, lines)}
    assert reasons == {
        "broken.png": "quarantined: decode/not_an_image",
        "late.png": "not_in_dataset",
    }
    assert summary.skipped == {"quarantined": 1, "not_in_dataset": 1}
    facts = read_dataset(plan.pseudo_directory).splits["train"]
    assert (facts.count, facts.skipped) == (GOOD, 2)


def test_an_image_that_is_another_one_now_is_left_out(maps, world, tmp_path):
    shutil.copytree(world / "set", tmp_path / "set")
    images = tmp_path / "set" / "images" / "train"
    (images / "000.png").write_bytes((images / "001.png").read_bytes())
    _, summary, found = maps(dataset=tmp_path / "set")
    assert summary.skipped["other_content"] == 1
    assert "000" not in found


def test_an_interrupted_set_goes_on_after_what_is_recorded(maps, settings):
    plan, summary, found = maps()
    records = plan.pseudo_directory / RECORDS
    whole = records.read_text()
    (plan.pseudo_directory / "dataset.json").unlink()
    assert made_pseudo_set(plan) is None
    name = next(iter(found))
    mask = plan.pseudo_directory / "masks" / "train" / f"{name}.png"
    written = mask.stat().st_mtime_ns
    records.write_text(whole + '{"unit": ["half a li')
    assert make_pseudo_set(plan, Quiet()) == summary
    assert mask.stat().st_mtime_ns == written  # not made again
    assert records.read_text() == whole
    records.write_text("")
    assert make_pseudo_set(plan, Quiet()) == summary
    assert mask.stat().st_mtime_ns > written


def test_training_reads_the_set_and_learns_all_classes(maps):
    plan, _, _ = maps()
    config = plan.training()
    classes = plan.vocabulary
    data = LabelledImages.of(
        config.dataset / "images" / "train", config.dataset / "masks" / "train",
        classes.model_copy(update={"classes": tuple(
            entry.model_copy(update={"seen": None}) for entry in classes.classes
        )}),
        config.ignore_label, config.max_image_pixels,
    )  # fmt: skip
    found = data.examine(data.pairs(config.extensions))
    assert [finding.reason for finding in found] == [""] * GOOD


@pytest.fixture
def other(world, tmp_path, settings):
    """Settings whose data set has another vocabulary."""

    def make(names, seen):
        write_vocabulary(tmp_path / "classes.yaml", names, seen)
        return settings(vocabulary=tmp_path / "classes.yaml")

    return make


def test_a_dataset_of_another_vocabulary_is_refused(other):
    swapped = [VOCABULARY[1], VOCABULARY[0], *VOCABULARY[2:]]
    with pytest.raises(VocabularyError, match="'red square' is 'red circle' there"):
        SelfTrainingPlan.of(other(swapped, seen_flags()))
    with pytest.raises(VocabularyError, match=r"has 71 classes, .* labelled with 72"):
        SelfTrainingPlan.of(other(VOCABULARY[:-1], seen_flags()[:-1]))
    with pytest.raises(VocabularyError, match=r"which classes are seen \(red circle\)"):
        SelfTrainingPlan.of(other(VOCABULARY, [False, *seen_flags()[1:]]))


@pytest.fixture
def republished(world, tmp_path):
    """Publish the dataset once more with a changed manifest; return where."""

    def make(**changes):
        manifest = read_manifest(str(world / "labels"))
        copy = tmp_path / f"labels{len(list(tmp_path.iterdir()))}"
        shutil.copytree(world / "labels", copy)
        publish(str(copy), manifest.model_copy(update={"version": 2, **changes}))
        return str(copy)

    return make


def test_a_dataset_without_embeddings_or_flags_is_refused(settings, republished):
    with pytest.raises(SettingsError, match="annotate with --keep-embeddings"):
        SelfTrainingPlan.of(settings(labels=republished(embeddings=())))
    plain = Vocabulary.of(VOCABULARY)
    with pytest.raises(VocabularyError, match="without both seen and unseen classes"):
        SelfTrainingPlan.of(settings(labels=republished(vocabulary=plain)))


def test_a_dataset_that_cannot_be_labelled_again_is_refused(settings, republished, world):
    config = read_manifest(str(world / "labels")).config
    other = republished(config={**config, "mask_threshold": 0.3})
    with pytest.raises(ModelError, match="as it was: mask_threshold changed since"):
        SelfTrainingPlan.of(settings(labels=other))
    future = republished(config={**config, "telepathy": True})
    with pytest.raises(
        OutputError, match=r"another version of segmill, whose settings \(telepathy"
    ):
        SelfTrainingPlan.of(settings(labels=future))
    oracle = republished(config={**config, "oracle_truth": str(world / "set" / "masks")})
    with pytest.raises(SettingsError, match="labels of an oracle"):
        SelfTrainingPlan.of(settings(labels=oracle))


def test_the_comparison_runs_on_the_machines_of_the_self_training(settings, republished, world):
    config = read_manifest(str(world / "labels")).config
    of_a_cluster = {"address": "auto", "propose_resources": {"propose": 1.0}, "ship_code": True}
    labels = republished(config={**config, **of_a_cluster, "extensions": ["jpg"]})
    plan = SelfTrainingPlan.of(settings(labels=labels))
    for found in (plan.comparison("before"), plan.comparison("after")):
        assert AnnotateConfig.model_validate(found.model_dump()) == found
        assert (found.address, found.propose_resources) == ("local", {})
        assert found.extensions == plan.config.extensions


def test_images_to_compare_on_are_found_before_any_work(settings, world, tmp_path):
    with pytest.raises(SourceError, match=r"val holds no images; 2 files have other extensions"):
        SelfTrainingPlan.of(settings(extensions=("jpg",))).begin()
    train, val = (
        {kind: world / "set" / kind / split for kind in ("images", "masks")}
        for split in ("train", "val")
    )
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(val["masks"] / "000.png", other / "another.png")
    config = settings(
        dataset=None, **train, vocabulary=world / "set" / "vocabulary.yaml",
        eval_images=val["images"], eval_masks=other,
    )  # fmt: skip
    with pytest.raises(SettingsError, match=r"no image of .*val has a truth in .*other"):
        SelfTrainingPlan.of(config).begin()
    assert not config.output.exists()


def test_the_proposer_of_the_labels_may_be_in_a_store(settings, republished, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    stores = fsspec.filesystem("memory")
    stores.put(f"{EMBEDDED_PROPOSER}/", "/proposers/embedded/", recursive=True)
    config = read_manifest(settings().labels).config
    stored = {"proposer": "maskformer", "proposer_weights": "memory://proposers/embedded"}
    plan = SelfTrainingPlan.of(settings(labels=republished(config={**config, **stored})))
    plan.begin()
    assert plan.training().initial_weights.is_relative_to(tmp_path / "cache")


def test_one_output_has_one_kind_of_settings(settings):
    SelfTrainingPlan.of(settings()).begin()
    SelfTrainingPlan.of(settings(workers=2)).begin()  # decides nothing
    with pytest.raises(SettingsError, match=r"other settings \(steps 1\)"):
        SelfTrainingPlan.of(settings(steps=2)).begin()


def test_what_the_training_refuses_is_refused_before_any_work(settings):
    config = settings(crop_size=100)
    with pytest.raises(SettingsError, match="crop_size is 100"):
        train_self_training(config)
    assert not (config.output / "pseudo" / RECORDS).exists()
    train = SelfTrainingPlan.of(settings())  # nothing was recorded: other settings may follow
    train.begin()


@pytest.fixture(scope="module")
def finished(world):
    """One run of the whole command: its settings and result."""
    config = TrainSelfTrainingConfig(**defaults(world), output=world / "finished")
    return config, train_self_training(config)


def test_the_whole_command_compares_before_and_after(finished):
    _, result = finished
    assert result.kept == ()
    assert result.images == 2
    assert None not in (result.before.hiou, result.after.hiou)
    assert result.before != result.after  # one step was made
    assert load_config(result.proposer).seen_classes == VOCABULARY


def test_what_is_done_is_not_done_twice(finished):
    config, first = finished
    again = train_self_training(config)
    assert again.kept == ("pseudo labels", "training", "comparison")
    assert replace(again, kept=(), seconds=0.0) == replace(first, seconds=0.0)


def test_the_weight_after_is_that_of_the_comparison_after_alone(settings):
    plan = SelfTrainingPlan.of(settings(ensemble_weight_after=0.25))
    assert plan.comparison("before").ensemble_weight == 0.8
    assert plan.comparison("after").ensemble_weight == 0.25


def test_the_command_line_prints_the_comparison(finished, capsys):
    config, _ = finished
    flags = ["--labels", config.labels, "--dataset", str(config.dataset)]
    flags += ["--output", str(config.output), "--steps", "1", "--batch-size", "2"]
    flags += ["--crop-size", "96", "--short-edges", "96", "--gpus-per-worker", "0"]
    assert main(["train", "self-training", *flags]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out.splitlines()[-1])
    assert figures["images"] == GOOD
    assert figures["before"].keys() == figures["after"].keys() >= {"hiou", "unseen_miou"}
    assert figures["before"] != figures["after"]
    assert "before" in printed.err and "gain" in printed.err
