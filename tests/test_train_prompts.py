"""Training of prompts: in this process, and through Ray Train on this machine."""

import json
import math
import shutil
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.cli import main
from jobs.prompt_training_plan import PromptTrainingPlan
from jobs.train_prompts import SeedFigures, choose, train_prompts
from pipeline.fusion import LOGIT_SCALE
from pipeline.models.clip import Clip, ClipSource, text_vectors
from pipeline.models.embedded import EMBEDDED_CLIP
from pipeline.models.weight_cache import FOLDER_VARIABLE
from pipeline.prompts import NAME_ALONE, Prompts, load_prompts
from pipeline.synthetic import VOCABULARY, seen_flags
from pipeline.training.checkpoint import steps_saved
from pipeline.training.prompt_loop import figures_of, held_out_figures, read_figures, train
from pipeline.training.prompt_text import ClassTexts, Context
from pipeline.training.prompt_vectors import LEARNED, StoredVectors, _Vectors
from pipeline.training.region_views import Region, RegionInput
from pipeline.training.run_log import read_log
from pipeline.training.schedule import held_cosine
from schemas.errors import ModelError, SettingsError, TrainingError
from schemas.prompt_training_config import TrainPromptsConfig
from schemas.vocabulary import Vocabulary, VocabularyClass
from tests.tiny_clips import ROBERTA, save_small_clip
from tests.training_sets import add, store_clip, write_dataset, write_vocabulary

CPU = torch.device("cpu")
WORDS = Vocabulary(
    classes=(
        VocabularyClass(name="red circle", synonyms=("round red thing",)),
        VocabularyClass(name="blue star"),
        VocabularyClass(name="striped green ground"),
    )
)
# Regions as annotation cuts them.
AS_ANNOTATED = {"region_fill": "mean", "region_shape": "square", "augment": False}

# Longer strides than the paper's, whose training is long.
QUICK = {"vectors": 16, "batch_size": 32, "steps": 50, "checkpoint_every": 50, "max_norm": 0.1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twenty scenes as a prepared data set."""
    root = tmp_path_factory.mktemp("world")
    return write_dataset(root / "set", 20)


@pytest.fixture(scope="module")
def clip():
    return Clip.load(ClipSource(f"local-dir:{EMBEDDED_CLIP}"))


@pytest.fixture
def settings(world, tmp_path):
    """A maker of settings: six steps of one seed, logged each, saved at every second."""

    def make(name="run", **changed):
        values = {
            "dataset": world,
            "output": tmp_path / name,
            "seeds": (0,),
            "steps": 6,
            "batch_size": 16,
            "samples_per_class": 4,
            "warmup_steps": 2,
            "vectors": 4,
            "gpus_per_worker": 0,
            "checkpoint_every": 2,
            "log_every": 1,
        }
        return TrainPromptsConfig(**{**values, **changed})

    return make


class Quiet:
    def say(self, what):
        pass


class Killed(BaseException):
    pass


def prepared(config):
    """What workers get for settings, made without Ray."""
    plan = PromptTrainingPlan.of(config)
    return plan.training(plan.findings(Quiet()))


def nothing(done, note):
    pass


def curve(config, seed=0):
    return [line["loss"] for line in read_log(config.output / f"seed-{seed}")]


def prompt(config, seed=0):
    return load_prompts(str(config.output / f"seed-{seed}" / "prompt.safetensors"))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    embeds_BD = torch.nn.functional.normalize(torch.randn(7, 128, generator=generator), dim=1)
    return embeds_BD, torch.tensor([0, 1, 2, 0, 1, 2, 0])


def plain_loss(clip, context, embeds_BD, classes_B):
    """The loss by its formula, from the text vectors that annotation would take."""
    learned = context.prompt()
    text_KD = text_vectors(clip, WORDS, Prompts(NAME_ALONE, learned))
    logits_BK = LOGIT_SCALE * embeds_BD.numpy().astype(np.float64) @ text_KD.T
    chosen_B = logits_BK[np.arange(len(logits_BK)), classes_B.numpy()]
    return float((np.log(np.exp(logits_BK).sum(1)) - chosen_B).mean())


def test_the_loss_is_that_of_annotations_text_vectors_by_the_formula(clip, batch):
    context = Context(4, 128, seed=0)
    assert 0.015 < float(context.vectors_PW.detach().std()) < 0.025
    loss = ClassTexts(clip, WORDS, 4).step(context, *batch, parts=1)
    assert loss == pytest.approx(plain_loss(clip, context, *batch), rel=1e-4)


def test_the_gradient_is_the_slope_of_the_loss(clip, batch):
    context = Context(4, 128, seed=0)
    ClassTexts(clip, WORDS, 4).step(context, *batch, parts=1)
    slope_PW = context.vectors_PW.grad
    step_PW = 1e-3 * slope_PW / slope_PW.norm()
    losses = []
    for sign in (1, -1):
        moved = Context(4, 128, seed=0)
        moved.vectors_PW.data += sign * step_PW
        losses.append(plain_loss(clip, moved, *batch))
    measured = (losses[0] - losses[1]) / 2e-3
    assert measured == pytest.approx(float(slope_PW.norm()), rel=0.01)


def test_the_gradient_reaches_the_context_alone(clip, batch):
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    context = Context(4, 128, seed=0)
    ClassTexts(clip, WORDS, 4).step(context, *batch, parts=1)
    assert (context.vectors_PW.grad.abs().sum(1) > 0).all()
    assert [name for name, value in clip.model.named_parameters() if value.grad is not None] == []
    after = clip.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_parts_of_the_names_give_the_gradient_of_all(clip, batch):
    whole, parts = Context(4, 128, seed=0), Context(4, 128, seed=0)
    texts = ClassTexts(clip, WORDS, 4)
    losses = [texts.step(whole, *batch, parts=1), texts.step(parts, *batch, parts=3)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(parts.vectors_PW.grad, whole.vectors_PW.grad, rtol=1e-4, atol=1e-6)


def test_the_rate_is_held_small_and_then_falls_with_a_cosine():
    rates = [held_cosine(step, 1000, 100, 0.005) for step in range(1000)]
    assert set(rates[:100]) == {0.005}
    assert rates[100] == pytest.approx(0.97553, abs=1e-5)
    assert rates[500] == pytest.approx(0.5)
    assert 0 < rates[999] < 1e-4


def test_a_text_tower_that_does_not_read_at_the_end_is_refused(tmp_path):
    clip = Clip.load(ClipSource(save_small_clip(ROBERTA, tmp_path / "clip")))
    with pytest.raises(ModelError, match="reads its text at the end token"):
        ClassTexts(clip, WORDS, 16)


def test_a_name_that_leaves_no_room_is_refused(clip):
    with pytest.raises(ModelError, match=r"class 'red circle' is at least .* too long"):
        ClassTexts(clip, WORDS, 74)


def test_a_learned_prompt_has_a_lower_loss_than_the_single_template(settings, clip):
    config = settings(samples_per_class=8, held_out=0.4, **QUICK, **AS_ANNOTATED)
    training = prepared(config)
    train(training, CPU, nothing)
    single = text_vectors(clip, training.seen, load_prompts("single"))
    learned = text_vectors(clip, training.seen, prompt(config))
    figures = held_out_figures(training, learned)
    assert len(training.held_out) > 20
    assert figures["loss"] < 0.8 * held_out_figures(training, single)["loss"]
    assert read_figures(training, 0)["loss"] == pytest.approx(figures["loss"], rel=1e-3)
    assert np.mean(curve(config)[-10:]) < 0.8 * np.mean(curve(config)[:3])


def test_the_references_regions_are_learned_too(settings, clip):
    """Its quirks and random parts: harder regions, of which the template knows less."""
    config = settings(views_per_sample=2, **QUICK)
    training = prepared(config)
    assert training.input_size(clip.side) == (52, 48)
    assert training.num_views == 2
    train(training, CPU, nothing)
    vectors = StoredVectors(training, LEARNED)
    classes_N = torch.tensor([sample.position for sample in training.samples])
    single = torch.from_numpy(text_vectors(clip, training.seen, load_prompts("single")))
    loss = figures_of(torch.from_numpy(vectors.all()), single, classes_N)["loss"]
    assert read_figures(training, 0)["train_loss"] < 0.8 * loss


def test_a_run_that_was_killed_goes_on_to_the_same_vectors(settings):
    undisturbed, killed = settings("one", augment=False), settings("two", augment=False)
    train(prepared(undisturbed), CPU, nothing)
    training = prepared(killed)

    def dies(done, note):
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        train(training, CPU, dies)
    assert steps_saved(training.output_of(0)) == [2]
    train(training, CPU, nothing)
    assert curve(killed) == curve(undisturbed)
    assert len(curve(killed)) == 6
    np.testing.assert_array_equal(
        prompt(killed).learned.prefix_PW, prompt(undisturbed).learned.prefix_PW
    )


def test_every_turn_has_new_views_unless_they_are_limited(settings):
    fresh = prepared(settings(steps=20))
    turns = math.ceil(20 * 16 / len(fresh.samples))
    assert fresh.num_views == turns >= 3
    assert prepared(settings("two", steps=20, views_per_sample=2)).num_views == 2
    assert prepared(settings("three", steps=20, augment=False)).num_views == 1


def test_turns_go_through_the_views_and_begin_again(settings):
    training = prepared(settings(steps=20, views_per_sample=2))
    count = len(training.samples)
    places = np.array([0, count - 1, count, 2 * count - 1, 2 * count])
    assert training.views(places).tolist() == [0, 0, 1, 1, 0]


def test_stored_vectors_are_those_of_the_views(settings, clip):
    """Of a region, cut by hand: both views differ, and neither is the whole region's."""
    training = prepared(settings(views_per_sample=2, steps=20, region_shape="square"))
    train(training, CPU, nothing)
    whole = prepared(settings("whole", steps=20, region_shape="square", augment=False))
    train(whole, CPU, nothing)
    sample = training.samples[40]
    image, positions_HW = training.data.load(sample.pair)
    region = Region.of(image, positions_HW == sample.position)
    pixels, mask = region.view((0, 0, *region.image.size), (48, 48))
    crops = RegionInput((48, 48), "reference", clip.mean, clip.std)(
        torch.from_numpy(pixels.copy())[None], torch.from_numpy(mask.copy())[None]
    )
    expected = clip.encode_crops(crops, 1)[0].numpy()
    np.testing.assert_allclose(StoredVectors(whole, LEARNED).all()[40], expected, atol=1e-5)
    stored = StoredVectors(training, LEARNED)
    first, second = stored[np.array([40, 40]), np.array([0, 1])]
    np.testing.assert_array_equal(first, stored.all()[40])
    cosines = (first @ second, first @ expected, second @ expected)
    assert max(cosines) < 0.9999 and np.linalg.norm(first) == pytest.approx(1, abs=1e-5)


def test_more_seeds_take_the_vectors_that_are_there(settings):
    config = settings()
    training = prepared(config)
    train(training, CPU, nothing)
    folder = Path(training.output) / "vectors"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    more = prepared(settings(seeds=(0, 7)))
    train(more, CPU, nothing)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert curve(config, 7) != curve(config, 0)
    assert len(curve(config, 0)) == 6


def figures(seed, accuracy, loss):
    return SeedFigures(seed, accuracy, loss, 0.0, Path(f"{seed}"))


@pytest.mark.parametrize(
    "criterion, kept",
    [("accuracy", 3), ("loss", 2)],
)
def test_the_best_seed_is_kept_whatever_their_order(criterion, kept):
    seeds = [figures(2, 0.7, 0.1), figures(3, 0.9, 0.4), figures(5, 0.9, 0.5), figures(9, 0.7, 0.1)]
    assert {choose(order, criterion).seed for order in permutations(seeds)} == {kept}


def test_a_single_seed_is_kept_without_figures():
    assert choose([figures(4, math.nan, math.nan)], "accuracy").seed == 4


@pytest.fixture
def copy(world, tmp_path):
    shutil.copytree(world, tmp_path / "copy")
    return tmp_path / "copy"


def test_images_of_no_seen_class_are_left_out_and_recorded(settings, copy):
    add(copy, "004", np.zeros((96, 96, 3)), np.full((96, 96), 255))
    plan = PromptTrainingPlan.of(settings(dataset=copy))
    found = plan.findings(Quiet())
    assert [(f.pair.image, f.reason) for f in found if f.reason] == [("004.png", "no_seen_pixel")]
    samples = plan.training(found).samples
    assert samples and "004.png" not in {sample.pair.image for sample in samples}
    assert plan.findings(Quiet()) == found  # read


def test_regions_are_those_of_seen_classes(settings, world):
    training = prepared(settings())
    unseen = {n for n, s in zip(VOCABULARY, seen_flags(), strict=True) if not s}
    assert not unseen & set(training.seen.names)
    for sample in training.samples[:10]:
        _, positions_HW = training.data.load(sample.pair)
        assert (positions_HW == sample.position).any()
    absent = training.classes_without_samples
    assert {training.seen.names[s.position] for s in training.samples}.isdisjoint(absent)


def test_data_that_cannot_be_meant_are_refused(settings, copy):
    add(copy, "005", np.zeros((96, 96, 3)), np.full((96, 96), 200))
    with pytest.raises(SettingsError, match=r"005\.png holds the labels \[200\]; there are 0 to"):
        prepared(settings(dataset=copy))
    write_vocabulary(copy / "vocabulary.yaml", VOCABULARY, [False] * 72)
    with pytest.raises(SettingsError, match="no class of the vocabulary is flagged seen"):
        prepared(settings(dataset=copy))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"seeds": (1, 1)}, "they are different"),
        ({"seeds": (-1,)}, "0 or more"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (0, 1), "held_out": 0}, "nothing chooses among 2 seeds"),
        ({"region_fill": "grey"}, "region_fill"),
    ],
    ids=["twice", "negative", "none", "no held-out", "fill"],
)
def test_settings_that_contradict_each_other_are_refused(settings, changed, expected):
    with pytest.raises(ValueError, match=expected):
        settings(**changed)


def test_the_output_of_other_settings_is_not_gone_on_with(settings):
    prepared(settings())
    with pytest.raises(SettingsError, match=r"other settings \(steps 6\)"):
        PromptTrainingPlan.of(settings(steps=7)).refuse_other_settings()
    others = settings(seeds=(3, 4), criterion="loss", workers=2, accumulation=4)
    PromptTrainingPlan.of(others).refuse_other_settings()


def test_a_training_does_not_go_on_with_another_baseline_or_clip(settings, tmp_path):
    shutil.copytree(EMBEDDED_CLIP, tmp_path / "clip")
    baseline = tmp_path / "baseline.txt"
    baseline.write_text("a photo of a {}.")
    config = settings(baseline=str(baseline), clip=f"local-dir:{tmp_path / 'clip'}")
    prepared(config)
    PromptTrainingPlan.of(config).refuse_other_settings()
    baseline.write_text("a drawing of a {}.")
    (tmp_path / "clip" / "note.txt").write_text("another")
    with pytest.raises(SettingsError, match=r"\(baseline_identity \['a p.*clip_sha256 '\w{64}'\)"):
        PromptTrainingPlan.of(config).refuse_other_settings()


def test_a_clip_may_be_in_a_store(settings, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    stored = store_clip()
    plan = PromptTrainingPlan.of(settings(**stored))
    assert plan.clip.weights.startswith(f"{stored['clip_weights']}#sha256=")


def test_views_wait_for_clip_a_few_at_a_time(settings, clip, monkeypatch):
    """However many there are of a file's samples: they are pictures."""
    training = prepared(settings(image_batch=4, steps=100, loader_threads=2))
    assert training.num_views > 4
    cut, encoded, most = [], [], 0
    views, encode_crops = _Vectors._views, Clip.encode_crops

    def counted(self, index, sample, numbers):
        found = views(self, index, sample, numbers)
        cut.append(len(found[0]))
        return found

    def slow(self, crops, batch):
        nonlocal most
        time.sleep(0.02)
        most = max(most, sum(cut) - sum(encoded))
        encoded.append(len(crops))
        return encode_crops(self, crops, batch)

    monkeypatch.setattr(_Vectors, "_views", counted)
    monkeypatch.setattr(Clip, "encode_crops", slow)
    _Vectors(training, clip).write(LEARNED, 0)
    assert sum(cut) == sum(encoded) >= 300
    # One piece with CLIP, one more to go with it, and what the threads are cutting.
    assert most <= 4 * (1 + 1 + 2)


def test_a_loss_that_is_no_number_ends_the_training_and_is_not_kept(settings):
    config = settings(learning_rate=1e38, max_norm=1e38, momentum=0, checkpoint_every=1)
    training = prepared(config)
    with pytest.raises(TrainingError, match=r"the loss of step \d of seed 0 is not finite"):
        train(training, CPU, nothing)
    assert not (config.output / "seed-0" / "prompt.safetensors").exists()
    assert all(math.isfinite(loss) for loss in curve(config))


def test_a_file_that_goes_bad_meanwhile_is_named(settings, copy):
    training = prepared(settings(dataset=copy))
    (copy / "images" / "train" / training.samples[0].pair.image).write_bytes(b"gone")
    with pytest.raises(TrainingError, match="a region cannot be cut out any more: no decoder"):
        train(training, CPU, nothing)


@pytest.mark.ray
def test_two_workers_learn_what_one_does_and_the_best_is_written(
    ray_session, settings, capsys, tmp_path
):
    alone, together = settings("one", seeds=(0, 1)), settings("two", seeds=(0, 1), workers=2)
    train(prepared(alone), CPU, nothing)
    flags = [
        word
        for name, value in together.model_dump(mode="json", exclude_defaults=True).items()
        for item in (value if isinstance(value, list) else [value])
        for word in (f"--{name.replace('_', '-')}", str(item))
    ]
    assert main(["train", "prompts", *flags]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == json.loads((together.output / "result.json").read_text())
    for seed in (0, 1):
        assert curve(together, seed) == pytest.approx(curve(alone, seed), rel=1e-5)
    best = max(told["seeds"], key=lambda seed: (seed["accuracy"], -seed["loss"]))
    assert (told["chosen_seed"], told["criterion"]) == (best["seed"], "accuracy")
    assert Path(told["prompt"]).read_bytes() == Path(best["prompt"]).read_bytes()
    assert (told["images"], told["seen_classes"], told["resumed_from"]) == (20, 57, 0)
    assert told["baseline_loss"] > 0
    again = train_prompts(together)
    assert (again.chosen_seed, again.resumed_from) == (told["chosen_seed"], 12)
    name = save_small_clip(ROBERTA, tmp_path / "roberta")
    assert main(["train", "prompts", *flags, "--output", str(tmp_path / "c"), "--clip", name]) == 2
    assert "a learned prompt needs a clip that reads its text at the end" in capsys.readouterr().err
