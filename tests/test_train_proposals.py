"""Training of proposals: in this process, and through Ray Train on this machine."""

import os
import shutil
import signal
import struct
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from jobs.cli import main
from jobs.proposal_training_plan import ProposalTrainingPlan
from jobs.train_proposals import train_proposals
from jobs.training_plan import usable
from pipeline.models.clip import Clip, ClipSource, text_vectors
from pipeline.models.embedded import EMBEDDED_CLIP, EMBEDDED_PROPOSER
from pipeline.models.maskformer import BackboneConfig, MaskFormer, load_config
from pipeline.models.weight_cache import FOLDER_VARIABLE
from pipeline.prompts import LearnedPrompt, load_prompts
from pipeline.stages.fetch import FetchDecode
from pipeline.stages.propose import Propose
from pipeline.synthetic import VOCABULARY, seen_flags
from pipeline.training import world as training_world
from pipeline.training.checkpoint import steps_saved
from pipeline.training.proposal_loop import train
from pipeline.training.proposal_training import ProposalTraining
from pipeline.training.run_log import read_log
from pipeline.training.set_loss import set_losses, total_loss
from pipeline.training.targets import Targets, class_masks
from pipeline.training_runtime import Workers, run_workers
from schemas.annotate_config import SourceSettings
from schemas.errors import ModelError, OutputError, SettingsError, TrainingError, VocabularyError
from schemas.training_config import TrainProposalsConfig
from schemas.vocabulary import Vocabulary
from tests import downloads
from tests.helpers import take_inventory
from tests.test_datasets import prepared as prepared_download
from tests.training_sets import (
    CROP,
    SMALL,
    add,
    store_clip,
    write_architecture,
    write_dataset,
    write_vocabulary,
)

SEEN = tuple(name for name, seen in zip(VOCABULARY, seen_flags(), strict=True) if seen)
CPU = torch.device("cpu")
# What the order of additions may change, relative to a loss.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twelve scenes as a prepared data set, and a small architecture."""
    root = tmp_path_factory.mktemp("world")
    write_dataset(root / "set", 12)
    write_architecture(root / "small")
    write_architecture(root / "dropping", SMALL.model_copy(update={"dropout": 0.1}))
    return root


@pytest.fixture(scope="module")
def text_KD():
    clip = Clip.load(ClipSource(f"local-dir:{EMBEDDED_CLIP}"))
    return text_vectors(clip, Vocabulary.of(SEEN), load_prompts("single"))


@pytest.fixture
def settings(world, tmp_path):
    """A maker of settings: six steps of four images, logged each, saved at every second."""

    def make(name="run", **changed):
        values = {
            "dataset": world / "set",
            "output": tmp_path / name,
            "architecture": str(world / "small" / "config.json"),
            "steps": 6,
            "batch_size": 4,
            "crop_size": CROP,
            "short_edges": (96, 112),
            "max_long_edge": 400,
            "short_edge": 128,
            "long_edge": 512,
            "learning_rate": 1e-3,
            "backbone_factor": 1.0,
            "gpus_per_worker": 0,
            "checkpoint_every": 2,
            "log_every": 1,
        }
        return TrainProposalsConfig(**{**values, **changed})

    return make


@pytest.fixture
def prepared(text_KD):
    """What workers get for settings, made without Ray."""

    def make(config):
        plan = ProposalTrainingPlan.of(config)
        found = plan.findings(Quiet())
        pairs = tuple(finding.pair for finding in usable(plan.config, found))
        return ProposalTraining(plan.config, plan.model(len(pairs)), text_KD, plan.data, pairs)

    return make


class Quiet:
    def say(self, what):
        pass


class Killed(BaseException):
    pass


def dies_after(step):
    """A report that ends the worker as soon as a step is done, before its checkpoint."""

    def report(done, note):
        if done == step:
            raise Killed

    return report


def nothing(done, note):
    pass


def curve(config):
    return [line["loss"] for line in read_log(config.output)]


def norms(config):
    """Of the gradients: clipping and Adam hide their scale from the curve."""
    return [line["gradient_norm"] for line in read_log(config.output)]


def weights(config):
    return MaskFormer.load(config.output / "proposer").state_dict()


def test_the_loss_falls(settings, prepared):
    config = settings(steps=40, checkpoint_every=40)
    train(prepared(config), CPU, nothing)
    losses = curve(config)
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    last = read_log(config.output)[-1]
    assert last["learning_rate"] == pytest.approx(1e-3 * (1 / 40) ** 0.9)
    assert {"loss_ce", "loss_mask", "loss_dice", "gradient_norm", "masks"} <= last.keys()


@pytest.mark.parametrize("architecture", ["small", "dropping"])
def test_a_run_that_was_killed_goes_on_to_the_same_curve(settings, prepared, world, architecture):
    changed = {"architecture": str(world / architecture / "config.json")}
    undisturbed, killed = settings("one", **changed), settings("two", **changed)
    train(prepared(undisturbed), CPU, nothing)
    training = prepared(killed)
    with pytest.raises(Killed):
        train(training, CPU, dies_after(4))
    assert steps_saved(str(killed.output)) == [2]
    assert len(curve(killed)) == 3  # one step more than was kept
    train(training, CPU, nothing)
    assert curve(killed) == curve(undisturbed)
    expected, found = weights(undisturbed), weights(killed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert steps_saved(str(killed.output)) == [4, 6]


def test_dropout_is_drawn_anew_for_every_step(settings, prepared, world):
    changed = {"architecture": str(world / "dropping" / "config.json")}
    first, second = settings("one", **changed), settings("two", **changed, seed=1)
    for config in (first, second):
        train(prepared(config), CPU, nothing)
    assert curve(first) != curve(second)


def test_parts_of_a_batch_add_up_to_the_batch(settings, prepared):
    whole, parts = settings("whole"), settings("parts", accumulation=4)
    for config in (whole, parts):
        train(prepared(config), CPU, nothing)
    assert curve(parts) == pytest.approx(curve(whole), rel=ROUNDING)
    assert norms(parts) == pytest.approx(norms(whole), rel=10 * ROUNDING)


def test_bf16_is_near_fp32(settings, prepared):
    exact, lower = settings("exact", steps=3), settings("lower", steps=3, precision="bf16")
    for config in (exact, lower):
        train(prepared(config), CPU, nothing)
    assert curve(lower) != curve(exact)
    assert curve(lower) == pytest.approx(curve(exact), rel=0.05)


def test_a_loss_that_is_no_number_ends_the_training_and_is_not_kept(settings, prepared):
    config = settings(learning_rate=1e25, checkpoint_every=1)
    training = prepared(config)
    with pytest.raises(TrainingError, match=r"the loss of step 2 is not finite .*\d\d\d\.png"):
        train(training, CPU, nothing)
    assert steps_saved(str(config.output)) == [1]
    assert len(curve(config)) == 1
    assert not (config.output / "proposer").exists()


def test_a_gradient_that_is_no_number_updates_nothing(settings, prepared):
    config = settings()
    training = prepared(config)
    text_KD = training.text_KD.copy()
    # Finite products whose squares are not: only the gradient overflows.
    training = ProposalTraining(
        config, training.model, 1e18 * text_KD, training.data, training.pairs
    )
    with pytest.raises(TrainingError, match=r"the gradient of step 1 is not finite"):
        train(training, CPU, nothing)
    assert steps_saved(str(config.output)) == []


def test_a_file_that_goes_bad_meanwhile_is_named_with_the_step(settings, prepared, world, tmp_path):
    shutil.copytree(world / "set", tmp_path / "set")
    config = settings(dataset=tmp_path / "set")
    training = prepared(config)
    (tmp_path / "set" / "images" / "train" / training.pairs[0].image).write_bytes(b"gone")
    with pytest.raises(TrainingError, match=r"step \d: no decoder recognises the file"):
        train(training, CPU, nothing)


def test_the_first_weights_can_be_given(settings, prepared):
    first = settings("first", steps=2)
    train(prepared(first), CPU, nothing)
    second = settings("second", initial_weights=first.output / "proposer", steps=1)
    third = settings("third", steps=1)
    for config in (second, third):
        train(prepared(config), CPU, nothing)
    assert curve(second)[0] < curve(third)[0]
    assert MaskFormer.load(second.output / "proposer").config.provenance.startswith(
        "segmill train proposals"
    )


SWIN = BackboneConfig(
    kind="swin",
    name="swin-tiny",
    options={"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
)


@pytest.mark.parametrize(
    "backbone",
    [SMALL.backbone, SWIN, load_config(EMBEDDED_PROPOSER).backbone],
    ids=lambda backbone: backbone.kind,
)
def test_every_trained_weight_gets_a_gradient(backbone):
    """Workers wait for the gradients of all weights; one that never comes ends the training."""
    model = MaskFormer(SMALL.model_copy(update={"backbone": backbone})).train()
    output = model(torch.randn(2, 3, 96, 96))
    positions_HW = torch.zeros(96, 96, dtype=torch.int64)
    labels_M, masks_MHW = class_masks(positions_HW, 1, (96, 96))
    targets = Targets.of([labels_M] * 2, [masks_MHW] * 2)
    text_KD = torch.ones(1, SMALL.embedding_dim) / SMALL.embedding_dim**0.5
    total_loss(set_losses((*output.aux, output), text_KD, targets)).backward()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert len(trained) > 100
    assert [name for name, value in trained.items() if value.grad is None] == []


def findings(config):
    return ProposalTrainingPlan.of(config).findings(Quiet())


@pytest.fixture
def copy(world, tmp_path):
    shutil.copytree(world / "set", tmp_path / "copy")
    return tmp_path / "copy"


def test_an_image_without_a_map_and_a_map_without_an_image_are_refused(settings, copy):
    (copy / "masks" / "train" / "003.png").unlink()
    with pytest.raises(SettingsError, match=r"1 of 12 images have no PNG label map .*003\.png"):
        findings(settings(dataset=copy))
    (copy / "images" / "train" / "003.png").unlink()
    (copy / "images" / "train" / "007.png").unlink()
    with pytest.raises(SettingsError, match=r"1 of 11 label maps have no image in .*007\.png"):
        findings(settings(dataset=copy))


@pytest.fixture
def own(tmp_path):
    """A data set as `datasets prepare` writes it: of its four images two show a seen class."""
    downloads.folder(tmp_path / "own")
    (tmp_path / "own" / "classes.txt").write_text("sky [seen]\ncat [unseen]\ntree [seen]\n")
    (tmp_path / "own" / "masks" / "train" / "c.png").unlink()
    downloads.save_map(tmp_path / "own" / "masks" / "train" / "c.png", downloads.fill(1, 1, 1))
    return prepared_download("folder", tmp_path / "own", vocabulary=tmp_path / "own/classes.txt")


def test_maps_of_the_seen_classes_alone_are_learned_from_as_prepare_wrote_them(settings, own):
    config = settings(dataset=own, split="train_base", short_edges=(96,))
    plan = ProposalTrainingPlan.of(config)
    assert plan.vocabulary.names == plan.seen.names == ("sky", "tree")
    found = plan.findings(Quiet())
    # Of image c no map was written, since it shows the unseen class alone.
    assert [finding.pair.mask for finding in found] == ["a.png", "deep/b.png"]
    assert [finding.positions for finding in found] == [(0,), (1,)]
    (own / "masks" / "train_base" / "a.png").unlink()
    with pytest.raises(SettingsError, match=r"train_base has 1 label maps, dataset.json says 2"):
        findings(settings("again", dataset=own, split="train_base"))


def test_a_prepared_split_is_not_read_with_other_classes(settings, own):
    changed = {"dataset": own, "vocabulary": own / "vocabulary.yaml"}
    with pytest.raises(SettingsError, match=r"vocabulary.yaml has 3 classes; the maps of .* the 2"):
        findings(settings(**changed, split="train_base"))
    with pytest.raises(SettingsError, match="no split 'test'; it has train, train_base, val"):
        findings(settings(dataset=own, split="test"))


def test_maps_of_more_than_255_classes_are_learned_from_as_prepare_wrote_them(settings, tmp_path):
    names = "".join(f"class {number}\n" for number in range(300))
    (tmp_path / "classes.txt").write_text(names)
    downloads.save_photo(tmp_path / "images" / "a.jpg")
    downloads.save_map(tmp_path / "masks" / "a.png", downloads.fill(255, 299, 65535), np.uint16)
    root = prepared_download("folder", tmp_path, vocabulary=tmp_path / "classes.txt")
    config = settings(dataset=root)
    (found,) = findings(config)
    assert found.positions == (255, 299)
    assert ProposalTrainingPlan.of(config)._deciding()["ignore_label"] == 65535


def test_a_file_of_weights_that_does_not_fit_is_refused_before_any_work(settings, tmp_path):
    torch.save({"stem.conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"other\.pth does not fit the backbone: missing res2"):
        ProposalTrainingPlan.of(settings(backbone_weights=tmp_path / "other.pth"))


def test_a_file_that_one_worker_lacks_ends_all(settings, prepared, monkeypatch):
    problem = "there is no file R-103.pkl"
    training = prepared(settings())
    monkeypatch.setattr(training_world, "gathered", lambda own: [*own, problem])
    with pytest.raises(ModelError, match=problem):
        train(training, CPU, nothing)


def test_two_files_of_one_name_are_refused(settings, copy):
    shutil.copy(copy / "images" / "train" / "003.png", copy / "images" / "train" / "003.jpg")
    with pytest.raises(SettingsError, match=r"003\.jpg and 003\.png .* the same name"):
        findings(settings(dataset=copy))


def test_labels_of_no_class_are_refused(settings, copy):
    add(copy, "005", np.zeros((96, 96, 3)), np.full((96, 96), 200))
    with pytest.raises(
        SettingsError, match=r"005\.png holds the labels \[200\]; there are 0 to 71"
    ):
        findings(settings(dataset=copy))


def test_images_of_no_seen_class_are_left_out_and_recorded(settings, copy):
    unseen = seen_flags().index(False)
    add(copy, "004", np.zeros((96, 96, 3)), np.full((96, 96), 255))
    add(copy, "005", np.zeros((96, 96, 3)), np.full((96, 96), unseen))
    config = settings(dataset=copy)
    found = {finding.pair.image: finding.reason for finding in findings(config)}
    assert {name for name, reason in found.items() if reason} == {"004.png", "005.png"}
    assert found["004.png"] == found["005.png"] == "no_seen_pixel"
    assert found == {finding.pair.image: finding.reason for finding in findings(config)}  # read
    assert "004.png" not in [f.pair.image for f in usable(config, findings(config))]


def test_bad_files_are_left_out_up_to_a_limit(settings, copy):
    (copy / "images" / "train" / "004.png").write_bytes(b"no image")
    add(copy, "005", np.zeros((96, 96, 3)), np.zeros((96, 97)))
    Image.new("RGB", (96, 96)).save(copy / "masks" / "train" / "006.png")
    with pytest.raises(SettingsError, match=r"3 of 12 images .*004\.png: not_an_image") as error:
        findings(settings(dataset=copy))
    assert "005.png: sizes_differ (map (96, 97), image (96, 96)" in str(error.value)
    assert "006.png: bad_label_map" in str(error.value)
    assert sum(f.is_bad for f in findings(settings(dataset=copy, max_bad_fraction=0.25))) == 3


def test_nothing_to_learn_from_is_refused(settings, copy):
    write_vocabulary(copy / "vocabulary.yaml", VOCABULARY, [False] * 72)
    with pytest.raises(SettingsError, match="no class of the vocabulary is flagged seen"):
        findings(settings(dataset=copy))
    names = [*VOCABULARY, "unicorn"]
    write_vocabulary(copy / "vocabulary.yaml", names, [False] * 72 + [True])
    with pytest.raises(SettingsError, match="none of 12 label maps has a pixel of a seen class"):
        findings(settings(dataset=copy))


@pytest.mark.parametrize(
    ("changed", "kind", "expected"),
    [
        ({"crop_size": 100}, SettingsError, "crop_size is 100; it must be a multiple of 32"),
        ({"ignore_label": 7}, SettingsError, "ignore_label is 7, which is class 'orange square'"),
        ({"architecture": "r51"}, ModelError, "no architecture 'r51'; there are r50, r101c"),
        ({"split": "val"}, SettingsError, "there is no directory .*images/val"),
        ({"vocabulary": "no.yaml"}, VocabularyError, "no.yaml"),
        ({"clip": "none"}, ModelError, "'none' is no architecture"),
        ({"backbone_weights": "no.pth"}, ModelError, "there is no file .*no.pth"),
        ({"prompts": "no.txt"}, SettingsError, "no.txt"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_meant_are_refused(settings, changed, kind, expected):
    with pytest.raises(kind, match=expected):
        findings(settings(**changed))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"batch_size": 6, "workers": 2, "accumulation": 2}, "must be a multiple of 4"),
        ({"dataset": None}, "give dataset, or images, masks and vocabulary"),
        ({"images": "x"}, "not both"),
        ({"initial_weights": "x", "backbone_weights": "y"}, "exclude each other"),
        ({"short_edge": 700}, "short_edge 700 is above long_edge 512"),
        ({"steps": 0}, "steps"),
        ({"no_object_weight": 0}, "no_object_weight"),
        ({"precision": "fp16"}, "precision"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_contradict_each_other_are_refused(settings, changed, expected):
    with pytest.raises(ValueError, match=expected):
        settings(**changed)


def test_the_output_of_other_settings_is_not_gone_on_with(settings):
    findings(settings())
    plan = ProposalTrainingPlan.of(settings(seed=1, batch_size=8, workers=2))
    with pytest.raises(SettingsError, match=r"other settings \(batch_size 4, seed 0\)"):
        plan.refuse_other_settings()
    ProposalTrainingPlan.of(settings(workers=2, log_every=7)).refuse_other_settings()


@pytest.mark.parametrize("prompts", ["prompt.safetensors", "prompt.txt"])
def test_a_training_does_not_go_on_with_prompts_that_have_changed(settings, tmp_path, prompts):
    file = tmp_path / prompts

    def write(number):
        if file.suffix == ".txt":
            file.write_text(f"picture {number} of a {{}}.")
        else:
            vectors = np.full((4, 128), number, np.float32)
            LearnedPrompt.of({"prefix_prompt": vectors}, "test").save(file)

    write(1)
    findings(settings(prompts=str(file)))
    ProposalTrainingPlan.of(settings(prompts=str(file))).refuse_other_settings()
    write(2)
    with pytest.raises(SettingsError, match=r"other settings \(prompts_identity "):
        ProposalTrainingPlan.of(settings(prompts=str(file))).refuse_other_settings()


def test_a_training_does_not_go_on_with_a_clip_that_has_changed(settings, tmp_path):
    shutil.copytree(EMBEDDED_CLIP, tmp_path / "clip")
    config = settings(clip=f"local-dir:{tmp_path / 'clip'}")
    findings(config)
    ProposalTrainingPlan.of(config).refuse_other_settings()
    (tmp_path / "clip" / "note.txt").write_text("another")
    with pytest.raises(SettingsError, match=r"other settings \(clip_sha256 '\w{64}'\)"):
        ProposalTrainingPlan.of(config).refuse_other_settings()


def test_a_clip_may_be_in_a_store(settings, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    stored = store_clip()
    plan = ProposalTrainingPlan.of(settings(**stored))
    assert plan.structure.embedding_dim == 512
    assert plan.clip.weights.startswith(f"{stored['clip_weights']}#sha256=")


def test_a_checkpoint_that_is_cut_short_is_named(settings, prepared):
    config = settings(steps=2)
    training = prepared(config)
    train(training, CPU, nothing)
    file = config.output / "checkpoints" / "00000002.pt"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(OutputError, match=r"00000002\.pt cannot be read .* the one before"):
        train(training, CPU, nothing)


def test_plain_directories_do_as_well(settings, world):
    plain = settings(
        dataset=None,
        images=world / "set" / "images" / "train",
        masks=world / "set" / "masks" / "train",
        vocabulary=world / "set" / "vocabulary.yaml",
    )
    assert findings(plain) == findings(settings("other"))


@pytest.mark.ray
def test_two_workers_make_the_steps_of_one(ray_session, settings, capsys):
    one, two = settings("one"), settings("two", workers=2)
    result = train_proposals(one)
    assert (result.images, result.seen_classes, result.resumed_from) == (12, 57, 0)
    train_proposals(two)
    assert len(curve(one)) == 6
    assert curve(two) == pytest.approx(curve(one), rel=ROUNDING)
    assert norms(two) == pytest.approx(norms(one), rel=10 * ROUNDING)
    left = {path.name for path in one.output.iterdir()}
    assert left == {
        "proposer", "checkpoints", "log.jsonl", "tensorboard", "data.json", "config.json", "_lock",
    }  # fmt: skip
    assert events(one) == [(line["step"], line["loss"]) for line in read_log(one.output)]
    check_weights(one, result.proposer)


def check_weights(config, proposer):
    """They are ours, say where they come from, and propose masks in the pipeline."""
    card = load_config(proposer)
    assert card.seen_classes == SEEN
    assert (card.short_edge, card.long_edge) == (128, 512)
    assert "--learning-rate 0.001" in card.provenance and "12 images of" in card.provenance
    fetch = FetchDecode(128, 512, SourceSettings())
    images = take_inventory(str(config.dataset / "images" / "train" / "00*.png"), ("png",)).images
    rows = Propose("maskformer", str(proposer), 32, "float16")(fetch(images)).to_pylist()
    assert len(rows) == 10
    assert [(row["error"], row["n_proposals"]) for row in rows] == [(None, SMALL.queries)] * 10


def events(config):
    """The losses in TensorBoard's files, read by their format: length, crc, event, crc."""
    found = []
    for file in (config.output / "tensorboard").iterdir():
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            found += [
                (event.step, value.simple_value)
                for value in event.summary.value
                if value.tag == "loss"
            ]
    return [(step, pytest.approx(loss)) for step, loss in sorted(found)]


def dying(training, marker, device, report):
    """Train, and once kill the own process as step 4 is reported."""

    def deadly(done, note):
        report(done, note)
        if done == 4 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    train(training, device, deadly)


@pytest.mark.ray
def test_a_worker_that_dies_is_replaced_and_the_curve_is_the_same(
    ray_session, settings, prepared, tmp_path
):
    undisturbed, struck = settings("one"), settings("two")
    train(prepared(undisturbed), CPU, nothing)
    marker, seen = tmp_path / "died", []
    run_workers(
        partial(dying, prepared(struck), marker),
        Workers(1, 1, 0, max_failures=1),
        struck.output,
        "run",
        lambda done, note: seen.append(done),
    )
    assert marker.exists()
    assert curve(struck) == pytest.approx(curve(undisturbed), rel=ROUNDING)
    assert max(seen) == 6


@pytest.mark.ray
def test_the_command_ends_with_one_line_when_a_loss_is_no_number(
    ray_session, settings, tmp_path, capsys
):
    config = settings(learning_rate=1e25, steps=3, workers=2)
    given = config.model_dump(mode="json", exclude_defaults=True)
    arguments = []
    for name, value in given.items():
        for item in value if isinstance(value, list) else [value]:
            arguments += [f"--{name.replace('_', '-')}", str(item)]
    assert main(["train", "proposals", *arguments]) == 1
    stderr = capsys.readouterr().err
    assert "the loss of step 2 is not finite" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
