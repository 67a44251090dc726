"""detectron2 models as proposers: tiny random ones of every real architecture.

What needs detectron2 is skipped where it is not installed; the rest runs everywhere.
"""

import pickle
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from jobs.annotate import annotate
from jobs.cli import main
from pipeline.models import find_proposer
from pipeline.models.detectron2_files import Detectron2Files, read_config
from pipeline.models.detectron2_masks import output_masks, proposal_logits, without_repeats
from pipeline.resize import padded_size
from schemas.annotate_config import AnnotateConfig
from schemas.errors import ModelError
from tests.dataset_checks import check_rows, rows_of
from tests.helpers import draw, save_tiny_clip
from tests.tiny_detectron2 import (
    ARCHITECTURES,
    MODULE,
    config_of,
    modules_of,
    save_tiny,
    write_config,
)
from tests.tiny_transformers import annotate_two_photos, one_thread, photo

__all__ = ["one_thread"]  # a fixture of every test here

needs_detectron2 = pytest.mark.skipif(
    find_spec("detectron2") is None, reason="detectron2 is not installed"
)
# detectron2's own, of today's PyTorch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function from an architecture's name to a directory with a tiny model of it."""
    root = tmp_path_factory.mktemp("detectron2")

    def save(name):
        return str(root / name) if (root / name).exists() else save_tiny(name, root / name)

    return save


def entry(name="mask-rcnn"):
    return find_proposer("detectron2", modules_of(name))


def change_config(directory, **changes):
    """Change settings of `MODEL`, or whole sections, of a saved model."""
    path = Path(directory) / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section] = {**config[section], name: value} if name else value
    path.write_text(yaml.safe_dump(config))


def change_weights(directory, change):
    """Apply `change` to the mapping of weights of a saved model."""
    path = Path(directory) / "model.pth"
    weights = torch.load(path, weights_only=True)["model"]
    change(weights)
    torch.save({"model": weights}, path)


# --- every architecture


@needs_detectron2
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_described_without_its_weights_being_read(name, saved, tmp_path):
    lone = copytree(saved(name), tmp_path / "lone")
    (lone / "model.pth").write_bytes(b"other weights")
    (lone / "README.md").write_text("---\nlicense: cc-by-sa-3.0\n---\n")
    card, other = entry(name).describe(saved(name)), entry(name).describe(str(lone))
    assert (card.short_edge, card.long_edge, card.divisor) == (64, 128, 32)
    assert card.embedding_dim is None
    assert (card.licence, other.licence) == ("unknown (see the model card)", "cc-by-sa-3.0")
    assert len(card.weights_sha256) == 64
    assert card.weights_sha256 != other.weights_sha256


@needs_detectron2
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_masks_cover_the_padded_image_and_do_not_depend_on_the_batch(name, saved):
    model = entry(name).load(saved(name), "cpu")
    images = [photo(64, 96), photo(70, 90, 1), photo(64, 96, 2)]
    together = model.propose(images)
    for image, found in zip(images, together, strict=True):
        assert (found.query_embeds_QD, found.void_logits_Q) == (None, None)
        count, height, width = found.mask_logits_Qhw.shape
        padded = padded_size(image.shape[:2], 32)
        assert 2 <= count <= 100
        assert (height, width) == (padded[0] // 4, padded[1] // 4)
        (alone,) = model.propose([image])
        torch.testing.assert_close(alone.mask_logits_Qhw, found.mask_logits_Qhw, atol=0, rtol=0)
    assert model.propose([]) == []


@needs_detectron2
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_the_masks_are_those_of_detectron2s_own_predictor(name, order, saved, tmp_path):
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor

    directory = copytree(saved(name), tmp_path / "model")
    change_config(directory, INPUT__FORMAT=order)
    cfg = get_cfg()
    for module in modules_of(name):
        sys.modules[module].add_halves_config(cfg)
    cfg.merge_from_file(str(directory / "config.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = str(directory / "model.pth")
    image = photo(64, 96)  # of the size that the predictor resizes to
    output = DefaultPredictor(cfg)(image[:, :, ::-1])  # it takes BGR
    (found,) = entry(name).load(str(directory), "cpu").propose([image])
    expected = proposal_logits(output, (64, 96))
    assert len(expected) >= 2
    torch.testing.assert_close(found.mask_logits_Qhw, expected, atol=0, rtol=0)
    if name != "mask-rcnn":
        assert output_masks(output, (64, 96)).any(dim=0).all()  # every pixel is in some mask


@needs_detectron2
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size", [(3, 60), (60, 3), (1, 1)], ids=str)
def test_an_image_of_any_size_has_a_grid(name, size, saved):
    (found,) = entry(name).load(saved(name), "cpu").propose([photo(*size)])
    padded = padded_size(size, 32)
    assert found.mask_logits_Qhw.shape[1:] == (padded[0] // 4, padded[1] // 4)


@needs_detectron2
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_annotates_two_photos(name, saved, tmp_path):
    counts = annotate_two_photos("detectron2", saved(name), tmp_path, modules=modules_of(name))
    assert min(counts) >= 2


@needs_detectron2
@pytest.mark.ray
def test_a_third_party_model_goes_through_the_whole_pipeline(ray_session, saved, tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(3):
        image = Image.fromarray(photo(60, 80 + 10 * index, index))
        image.save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "classes.txt").write_text("sky\ncat\ntree\n")
    output = str(tmp_path / "labels")
    result = annotate(
        AnnotateConfig(
            source=str(tmp_path / "photos"),
            vocabulary=tmp_path / "classes.txt",
            output=output,
            proposer="detectron2",
            proposer_weights=saved("third-party"),
            proposer_modules=(MODULE,),
            clip=save_tiny_clip(tmp_path / "clip"),
        )
    )
    assert (result.counts.labelled, result.counts.quarantined) == (3, 0)
    rows = rows_of(output)
    check_rows(rows, whole=True)
    assert [row["n_proposals"] for row in rows] == [2, 2, 2]


# --- from outputs to masks; `Fields` has what detectron2's `Instances` has


class Fields:
    def __init__(self, **fields):
        self.__dict__.update(fields)

    def has(self, name):
        return name in self.__dict__


def masks_as_text(masks_QHW):
    return [["".join(".#"[pixel] for pixel in row) for row in mask] for mask in masks_QHW.int()]


def test_instances_come_best_score_first():
    masks = torch.from_numpy(draw("#...", ".##.", "...#").reshape(3, 1, 4))
    output = {"instances": Fields(pred_masks=masks, scores=torch.tensor([0.2, 0.9, 0.5]))}
    assert masks_as_text(output_masks(output, (1, 4))) == [[".##."], ["...#"], ["#..."]]
    soft = {"instances": Fields(pred_masks=masks.float() * 0.6)}  # probabilities, no scores
    assert masks_as_text(output_masks(soft, (1, 4))) == [["#..."], [".##."], ["...#"]]


def test_pixels_that_nothing_covers_are_divided_by_their_class():
    sem_seg = torch.tensor([[[5.0, 5.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]])
    one = torch.from_numpy(draw(".##.").reshape(1, 1, 4))
    output = {"instances": Fields(pred_masks=one), "sem_seg": sem_seg}
    assert masks_as_text(output_masks(output, (1, 4))) == [[".##."], ["#..."], ["...#"]]
    assert masks_as_text(output_masks({"sem_seg": sem_seg}, (1, 4))) == [["##.."], ["..##"]]


def test_panoptic_segments_are_those_of_the_list_or_all_from_0_on():
    ids = torch.tensor([[0, 7, 7, 3]])
    listed = {"panoptic_seg": (ids, [{"id": 3}, {"id": 7}])}  # 0 is no segment
    assert masks_as_text(output_masks(listed, (1, 4))) == [["...#"], [".##."]]
    unlisted = {"panoptic_seg": (torch.tensor([[-1, 7, 7, 0]]), None)}
    assert masks_as_text(output_masks(unlisted, (1, 4))) == [["...#"], [".##."]]


def test_no_object_is_no_proposal_but_still_a_grid():
    none = {"instances": Fields(pred_masks=torch.zeros((0, 40, 50), dtype=torch.bool))}
    assert proposal_logits(none, (40, 50)).shape == (0, 16, 16)


def test_an_object_found_under_two_classes_is_one_proposal():
    first_hw = torch.full((10, 10), -1.0)
    first_hw[:9] = 1.0
    almost_hw, half_hw = first_hw.clone(), first_hw.clone()
    almost_hw[0, 0] = -1.0
    half_hw[:5] = -1.0
    masks_Qhw = torch.stack([first_hw, almost_hw, half_hw, torch.full((10, 10), -1.0)])
    kept = without_repeats(masks_Qhw, 0.9)
    torch.testing.assert_close(kept, masks_Qhw[[0, 2]])


def test_at_most_a_hundred_masks_are_kept():
    ids = torch.arange(160).reshape(8, 20).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert proposal_logits({"panoptic_seg": (ids, None)}, (32, 80)).shape == (100, 8, 24)


def test_an_output_without_masks_or_of_another_size_is_refused():
    boxes = {"instances": Fields(pred_boxes=torch.zeros((1, 4)))}
    with pytest.raises(ModelError, match="returned instances without masks"):
        output_masks(boxes, (4, 4))
    with pytest.raises(ModelError, match=r"masks of \(2, 4\) for an image of \(4, 4\)"):
        output_masks({"sem_seg": torch.zeros((3, 2, 4))}, (4, 4))


# --- configurations


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_bases_are_merged_below_from_any_depth_and_in_order(tmp_path):
    write(tmp_path / "deep" / "c.yaml", "MODEL: {A: c, B: c, C: c, D: c}")
    write(tmp_path / "b.yaml", '_BASE_: "deep/c.yaml"\nMODEL: {A: b, B: b, C: b}')
    write(tmp_path / "other.yaml", "MODEL: {B: other}\nINPUT: [1]")
    top = write(tmp_path / "a.yaml", "_BASE_: [b.yaml, other.yaml]\nMODEL: {A: a}")
    merged = {"MODEL": {"A": "a", "B": "other", "C": "b", "D": "c"}, "INPUT": [1]}
    assert read_config(top) == merged


@needs_detectron2
def test_bases_are_merged_as_detectron2_does(tmp_path):
    from detectron2.config import CfgNode

    write(tmp_path / "base.yaml", "MODEL: {A: [1], B: {C: 2, D: '(3, 4)'}}\nX: {Y: 1}")
    write(tmp_path / "more.yaml", "MODEL: {B: {C: 5}}\nX: 2")
    top = write(tmp_path / "top.yaml", "_BASE_: [base.yaml, more.yaml]\nMODEL: {E: 1e-4}")
    assert read_config(top) == CfgNode.load_yaml_with_base(str(top))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("_BASE_: config.yaml\n", "config.yaml is its own _BASE_"),
        ("_BASE_: other.yaml\n", "cannot read .*other.yaml: No such file"),
        ("_BASE_: https://example.org/base.yaml\n", "must be a file of this machine"),
        ("_BASE_: [3]\n", "_BASE_ is 3; it must be a file"),
        ("_BASE_: {a: b}\n", "it must be a file"),
        ("_BASE_: flat.yaml\nMODEL: {A: 1}\n", "MODEL is a mapping, in its _BASE_ it is none"),
        ("- a list\n", "holds a list, not a mapping"),
        ("", "holds a NoneType, not a mapping"),
        ("MODEL: {\n", "config.yaml, line 2: not valid YAML"),
        ("MODEL: \0\n", "config.yaml: not valid YAML"),
        ("? [a]\n: 1\n", "line 1: found unhashable key"),
    ],
    ids=[
        "a circle", "absent base", "base on a server", "base is a number", "base is a mapping",
        "base without the mapping", "list", "empty", "cut", "control character", "unhashable key",
    ],
)  # fmt: skip
def test_a_broken_configuration_is_one_line(text, expected, tmp_path):
    write(tmp_path / "config.yaml", text)
    write(tmp_path / "flat.yaml", "MODEL: flat")
    write(tmp_path / "model.pth", "")
    with pytest.raises(ModelError, match=expected) as caught:
        find_proposer("detectron2").describe(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("is_base", [False, True], ids=["itself", "its base"])
@pytest.mark.parametrize(
    "tag", ["python/object/apply:os.mkdir [{}]", "python/object/new:os.mkdir [{}]",
            "python/name:os.mkdir", "python/tuple [{}]"],
)  # fmt: skip
def test_yaml_that_would_run_code_is_refused_and_runs_none(tag, is_base, tmp_path):
    mark = tmp_path / "executed"
    text = f"VERSION: 2\nMODEL:\n  WEIGHTS: !!{tag.format(mark)}\n"
    write(tmp_path / ("base.yaml" if is_base else "config.yaml"), text)
    if is_base:
        write(tmp_path / "config.yaml", "_BASE_: base.yaml\n")
    write(tmp_path / "model.pth", "")
    expected = rf"yaml, line 3: the tag !!{tag.split()[0]} is refused, as such tags run code"
    with pytest.raises(ModelError, match=expected):
        find_proposer("detectron2").describe(str(tmp_path))
    assert not mark.exists()


@needs_detectron2
def test_the_same_yaml_would_run_code_where_detectron2_reads_it(tmp_path):
    from detectron2.config import get_cfg

    mark = tmp_path / "executed"
    text = f"VERSION: 2\nOUTPUT_DIR: !!python/object/apply:os.mkdir [{mark}]\n"
    config = write(tmp_path / "config.yaml", text)
    get_cfg().merge_from_file(str(config))
    assert mark.exists()


@needs_detectron2
@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"MODEL__SWIN": {"DEPTH": 3}}, r"KeyError.*MODEL.SWIN.*need its module in proposer_mod"),
        ({"MODEL__MASK_ON": "yes"}, r"ValueError.*Type mismatch"),
        ({"MODEL__META_ARCHITECTURE": "Halved"}, r"no architecture 'Halved'; there are .*Panoptic"),
        ({"MODEL__META_ARCHITECTURE": "RetinaNet"}, "a RetinaNet without masks gives boxes"),
        ({"MODEL__MASK_ON": False}, "a GeneralizedRCNN without masks gives boxes"),
        ({"INPUT__FORMAT": "YUV-BT.601"}, "INPUT.FORMAT is 'YUV-BT.601'; BGR and RGB are known"),
        ({"VERSION": 3}, "AssertionError: Cannot merge a v3 config into a v2 config"),
    ],
    ids=[
        "unknown setting", "wrong type", "unknown architecture", "boxes only", "masks off",
        "colour space", "version",
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_propose_is_refused_before_any_work(
    changes, expected, tmp_path
):
    write_config(tmp_path, config_of("mask-rcnn"))
    change_config(tmp_path, **changes)
    write(tmp_path / "model.pth", "")
    with pytest.raises(ModelError, match=expected) as caught:
        entry().describe(str(tmp_path))
    assert "\n" not in str(caught.value)


@needs_detectron2
def test_the_whole_configuration_that_training_writes_is_the_same_model(saved, tmp_path):
    from detectron2.config import get_cfg

    directory = copytree(saved("mask-rcnn"), tmp_path / "output")
    cfg = get_cfg()
    cfg.merge_from_file(str(directory / "config.yaml"))
    write(directory / "config.yaml", cfg.dump())
    (found,) = entry().load(str(directory), "cpu").propose([photo(64, 96)])
    (expected,) = entry().load(saved("mask-rcnn"), "cpu").propose([photo(64, 96)])
    torch.testing.assert_close(found.mask_logits_Qhw, expected.mask_logits_Qhw, atol=0, rtol=0)


@needs_detectron2
def test_without_a_size_of_its_own_a_model_sees_the_usual_one(tmp_path):
    write_config(tmp_path, config_of("semantic"))
    change_config(tmp_path, INPUT={"MIN_SIZE_TEST": 0})
    write(tmp_path / "model.pth", "")
    card = entry().describe(str(tmp_path))
    assert (card.short_edge, card.long_edge) == (640, 2560)


@needs_detectron2
def test_an_architecture_that_cannot_be_built_is_one_line(saved, tmp_path):
    directory = copytree(saved("mask-rcnn"), tmp_path / "model")
    change_config(directory, MODEL__BACKBONE={"NAME": "build_nothing"})
    with pytest.raises(ModelError, match=f"cannot build the model of {directory}: KeyError"):
        entry().load(str(directory), "cpu")


# --- weights


def test_it_says_what_it_needs(tmp_path):
    with pytest.raises(ModelError, match="detectron2 needs weights: set proposer_weights to a dir"):
        find_proposer("detectron2").describe(None)
    for nowhere in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ModelError, match=f"{nowhere} is no directory with a config.yaml"):
            find_proposer("detectron2").describe(str(nowhere))
    write_config(tmp_path, {"VERSION": 2})
    with pytest.raises(ModelError, match=r"must hold one file of weights .* there are 0: none"):
        find_proposer("detectron2").describe(str(tmp_path))


def test_the_newest_checkpoint_of_a_training_run_is_taken(tmp_path):
    write_config(tmp_path, {"VERSION": 2})
    for name in ("model_0004.pth", "model_final.pth"):
        write(tmp_path / name, name)
    with pytest.raises(ModelError, match=r"there are 2: model_0004.pth, model_final.pth"):
        Detectron2Files.find(str(tmp_path))
    write(tmp_path / "last_checkpoint", "elsewhere/model_final.pth\n")
    files = Detectron2Files.find(str(tmp_path))
    assert files.weights == tmp_path / "model_final.pth"
    before = files.identity(())
    write(tmp_path / "metrics.json", "{}")  # a log decides no label
    write(tmp_path / "model_0004.pth", "changed")
    assert Detectron2Files.find(str(tmp_path)).identity(()) == before
    assert files.identity(("module",)) != before
    write_config(tmp_path, {"VERSION": 2, "INPUT": {"FORMAT": "RGB"}})
    assert Detectron2Files.find(str(tmp_path)).identity(()) != before
    write(tmp_path / "last_checkpoint", "model_gone.pth")
    with pytest.raises(ModelError, match=r"last_checkpoint names model_gone.pth, which is not"):
        Detectron2Files.find(str(tmp_path))


def as_safetensors(weights, directory):
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, directory / "m.safetensors"
    )


def as_zoo_pickle(weights, directory):
    arrays = {name: value.numpy() for name, value in weights.items()}
    content = {"model": arrays, "__author__": "detectron2"}
    (directory / "model_final.pkl").write_bytes(pickle.dumps(content, protocol=2))


def as_data_parallel(weights, directory):
    torch.save(
        {"model": {f"module.{n}": value for n, value in weights.items()}}, directory / "m.pth"
    )


def as_an_old_file(weights, directory):
    """Buffers that the configuration makes were stored, and counters."""
    old = {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675])[:, None, None],
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
        "backbone.bottom_up.stem.conv1.norm.num_batches_tracked": torch.tensor(5),
    }
    torch.save({**weights, **old}, directory / "m.pth")


@needs_detectron2
@pytest.mark.parametrize(
    "write_weights", [as_safetensors, as_zoo_pickle, as_data_parallel, as_an_old_file]
)
def test_every_kind_of_file_gives_the_same_masks(write_weights, saved, tmp_path):
    directory = copytree(saved("mask-rcnn"), tmp_path / "model")
    weights = torch.load(directory / "model.pth", weights_only=True)["model"]
    (directory / "model.pth").unlink()
    write_weights(weights, directory)
    (found,) = entry().load(str(directory), "cpu").propose([photo(64, 96)])
    (expected,) = entry().load(saved("mask-rcnn"), "cpu").propose([photo(64, 96)])
    torch.testing.assert_close(found.mask_logits_Qhw, expected.mask_logits_Qhw, atol=0, rtol=0)


STATISTIC = "backbone.bottom_up.res2.0.conv1.norm.running_mean"


@needs_detectron2
@pytest.mark.parametrize("keep_versions", [True, False], ids=["module versions", "none"])
@pytest.mark.parametrize("lost", ["roi_heads.box_predictor.cls_score.bias", STATISTIC])
def test_a_missing_weight_is_never_left_random(lost, keep_versions, saved, tmp_path):
    directory = copytree(saved("mask-rcnn"), tmp_path / "hole")

    def change(weights):
        del weights[lost]
        weights["stray.weight"] = torch.zeros(1)
        if not keep_versions:
            del weights._metadata

    change_weights(directory, change)
    expected = rf"weights missing: 1 \({lost}\); weights without a place: 1 \(stray.weight\)"
    with pytest.raises(ModelError, match=expected):
        entry().load(str(directory), "cpu")


@needs_detectron2
def test_statistics_that_a_caffe2_backbone_never_had_are_0_and_1(saved, tmp_path):
    directory = copytree(saved("semantic"), tmp_path / "caffe2")

    def change(weights):
        for name in [name for name in weights if "running_" in name]:
            del weights[name]
        del weights._metadata

    change_weights(directory, change)
    model = entry().load(str(directory), "cpu")._model
    assert model.state_dict()[STATISTIC].eq(0).all()
    assert model.state_dict()[STATISTIC.replace("mean", "var")].eq(1).all()


@needs_detectron2
def test_a_weight_beyond_the_model_is_named(saved, tmp_path):
    directory = copytree(saved("mask-rcnn"), tmp_path / "more")
    change_weights(directory, lambda weights: weights.update(stray=torch.zeros(1)))
    with pytest.raises(ModelError, match=r"missing: none; weights without a place: 1 \(stray\)"):
        entry().load(str(directory), "cpu")


@needs_detectron2
def test_a_weight_of_another_shape_is_refused(saved, tmp_path):
    directory = copytree(saved("semantic"), tmp_path / "shape")
    change_config(directory, MODEL__SEM_SEG_HEAD={"NUM_CLASSES": 6, "CONVS_DIM": 8, "NORM": ""})
    expected = r"does not fit the model: .* size mismatch for sem_seg_head.predictor.weight"
    with pytest.raises(ModelError, match=expected) as caught:
        entry().load(str(directory), "cpu")
    assert "\n" not in str(caught.value)


@needs_detectron2
def test_weights_of_another_normalisation_than_the_configurations_are_refused(saved, tmp_path):
    directory = copytree(saved("semantic"), tmp_path / "mean")
    change_weights(directory, lambda weights: weights.update(pixel_mean=torch.zeros(3, 1, 1)))
    expected = r"was trained with pixel_mean \[0.0, 0.0, 0.0\], config.yaml says \[103.5"
    with pytest.raises(ModelError, match=expected):
        entry().load(str(directory), "cpu")


# --- modules


def test_other_proposers_take_no_modules():
    with pytest.raises(
        ModelError, match="felzenszwalb imports no modules; proposer_modules is a, b"
    ):
        find_proposer("felzenszwalb", ("a", "b"))


@needs_detectron2
def test_a_list_of_modules_comes_from_the_command_line(saved, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("cat\n")
    arguments = ["annotate", str(tmp_path), "--vocabulary", str(tmp_path / "classes.txt")]
    arguments += ["--output", str(tmp_path / "labels"), "--proposer", "detectron2"]
    arguments += ["--proposer-weights", saved("third-party")]
    assert main([*arguments, "--proposer-modules", f"{MODULE},segmill_test_absent"]) == 2
    assert "proposer_modules: segmill_test_absent cannot be used" in capsys.readouterr().err


@needs_detectron2
def test_a_module_that_cannot_be_used_is_named(saved, tmp_path, monkeypatch):
    broken = "def add_broken_config(cfg):\n    cfg.MODEL.NOWHERE.A = 1\n"
    write(tmp_path / "segmill_test_broken.py", broken)
    monkeypatch.syspath_prepend(tmp_path)
    for name, reason in [
        ("segmill_test_absent", "ModuleNotFoundError"),
        ("segmill_test_broken", "AttributeError: NOWHERE"),
    ]:
        with pytest.raises(ModelError, match=f"proposer_modules: {name} cannot be used: {reason}"):
            find_proposer("detectron2", (name,)).describe(saved("semantic"))


@needs_detectron2
def test_settings_of_a_module_need_the_module(saved, tmp_path):
    directory = copytree(saved("third-party"), tmp_path / "model")
    change_config(directory, MODEL__HALVES={"CHANNELS": 4})
    assert find_proposer("detectron2", (MODULE,)).describe(str(directory)).short_edge == 64
    with pytest.raises(ModelError, match=r"Non-existent config key: MODEL.HALVES"):
        find_proposer("detectron2").describe(str(directory))


# --- detectron2 itself


@pytest.fixture
def forgotten(monkeypatch):
    """Take what is imported of detectron2 out of this process, until the test ends."""
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)


def any_model(directory):
    write_config(directory, {"VERSION": 2})
    write(directory / "model.pth", "")
    return str(directory)


def test_without_detectron2_it_says_how_to_get_it(forgotten, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "detectron2", None)  # as if it were not installed
    for use in (find_proposer("detectron2").describe, lambda w: entry().load(w, "cpu")):
        with pytest.raises(ModelError, match="needs detectron2, which is not installed") as caught:
            use(any_model(tmp_path / "model"))
        assert "facebookresearch/detectron2" in str(caught.value)
        assert "INSTALL.md" in str(caught.value)


def test_a_detectron2_built_for_another_pytorch_is_no_traceback(forgotten, monkeypatch, tmp_path):
    reason = "undefined symbol: _ZN2at4_ops5zeros4callE"
    write(tmp_path / "site" / "detectron2" / "__init__.py", f"raise ImportError('{reason}')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    expected = rf"cannot be imported beside torch {torch.__version__.split('+')[0]}.*{reason}"
    with pytest.raises(ModelError, match=expected):
        find_proposer("detectron2").describe(any_model(tmp_path / "model"))
