"""What a training reads and leaves: order of images, first weights, checkpoints, the log."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from torchvision.models import resnet50

from pipeline.models.maskformer import BackboneConfig, build_backbone
from pipeline.training import checkpoint
from pipeline.training.backbone_weights import load_backbone
from pipeline.training.labelled_images import Sampler
from pipeline.training.run_log import LOG_FILE, RunLog, read_log
from schemas.errors import ModelError
from tests.training_sets import SMALL


def test_every_image_comes_once_in_a_turn_and_in_another_order_in_the_next():
    sampler = Sampler(7, seed=3)
    turns = [[sampler.index(7 * turn + offset) for offset in range(7)] for turn in range(3)]
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) == 3
    assert [Sampler(7, seed=3).index(position) for position in range(7)] == turns[0]
    assert [Sampler(7, seed=4).index(position) for position in range(7)] != turns[0]


def test_a_backbone_takes_the_weights_of_torchvisions_classifier(tmp_path):
    torch.manual_seed(0)
    classifier = resnet50()
    classifier.layer4[2].bn3.running_mean.normal_()
    torch.save(classifier.state_dict(), tmp_path / "r50.pth")
    backbone, _ = build_backbone(BackboneConfig(kind="resnet", name="r50"))
    load_backbone(backbone, tmp_path / "r50.pth")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.eval()
        stem = expected.maxpool(expected.relu(expected.bn1(expected.conv1(pixels))))
        layers = expected.layer4(expected.layer3(expected.layer2(expected.layer1(stem))))
        torch.testing.assert_close(backbone.eval()(pixels)[-1], layers)


@pytest.mark.parametrize("stem", ["basic", "deeplab"])
def test_a_backbone_takes_the_weights_of_detectron2s_classifiers(tmp_path, stem):
    """Under the names that its models have, with the layer that the classifier ends in."""
    options = {**SMALL.backbone.options, "stem": stem}
    config = SMALL.backbone.model_copy(update={"options": options})
    source, backbone = (build_backbone(config)[0] for _ in range(2))
    weights = {"stem.fc.weight": np.zeros((5, 64)), "stem.fc.bias": np.zeros(5)}
    for name, value in source.state_dict().items():
        name = re.sub(r"bn(\d)\.", r"conv\1.norm.", name)
        name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        weights[name] = value.numpy()
    weights["stem.conv1.norm.num_batches_tracked"] = np.array(0)
    assert "res2.0.shortcut.norm.weight" in weights
    content = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(content))
    load_backbone(backbone, tmp_path / "R.pkl")
    expected = source.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())


def test_a_backbone_takes_its_own_names_and_refuses_what_does_not_fit(tmp_path):
    backbone, _ = build_backbone(SMALL.backbone)
    state = {f"backbone.{name}": value + 1 for name, value in backbone.state_dict().items()}
    torch.save(state, tmp_path / "own.pth")
    load_backbone(backbone, tmp_path / "own.pth")
    assert all(
        torch.equal(value, state[f"backbone.{name}"])
        for name, value in backbone.state_dict().items()
    )
    state["backbone.stem.conv1.weight"] = torch.zeros(1)
    state["extra"] = state.pop("backbone.res2.0.bn1.bias")
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(ModelError) as error:
        load_backbone(backbone, tmp_path / "wrong.pth")
    assert "missing res2.0.bn1.bias; unexpected extra; stem.conv1.weight has shape (1,)" in str(
        error.value
    )


def test_checkpoints_bring_model_and_optimiser_back_and_old_ones_go(tmp_path):
    def pair():
        model = torch.nn.Linear(2, 2)
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = pair()
    for step in (10, 20, 30):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        checkpoint.save(str(tmp_path), step, model, optimizer, keep=2)
    assert checkpoint.steps_saved(str(tmp_path)) == [20, 30]
    other, other_optimizer = pair()
    checkpoint.load(str(tmp_path), 30, other, other_optimizer)
    assert torch.equal(other.weight, model.weight)
    for ours, theirs in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    checkpoint.load(str(tmp_path), 20, other, other_optimizer)
    assert not torch.equal(other.weight, model.weight)


def test_no_folder_is_no_checkpoint(tmp_path):
    assert checkpoint.steps_saved(str(tmp_path / "none")) == []


def test_the_log_goes_on_after_a_step_and_forgets_what_came_later(tmp_path):
    with RunLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 2})
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # a killed run's last line
    with RunLog(tmp_path, 2) as log:
        assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
        log.write(3, {"loss": 9.0})
    lines = (tmp_path / LOG_FILE).read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 1.0, 9.0]
    assert read_log(tmp_path / "none") == []
