"""Few images at a time on a CPU: how many, and that it changes nothing else."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread, current_thread, main_thread

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import pipeline.models.passes
import pipeline.stages.propose
from pipeline.models import find_proposer
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crop_classifier import CropClassifier
from pipeline.models.crops import CropSettings
from pipeline.models.device import threads
from pipeline.models.embedded import EMBEDDED_CLIP
from pipeline.models.passes import (
    crops_per_pass,
    images_per_pass,
    in_passes,
    is_reentrant,
    passes_at_once,
    proposals_at_once,
    rounds,
)
from pipeline.stages.propose import Propose
from pipeline.synthetic import TEST_SEED
from tests.bench.scenes import decoded

MIB = 2**20


class Wide(nn.Module):
    """A network whose widest result is in the middle, of `mib` MiB an image."""

    def __init__(self, mib: float) -> None:
        super().__init__()
        self.wide = nn.Linear(4, int(mib * MIB / 4))
        self.narrow = nn.Linear(int(mib * MIB / 4), 2)

    def forward(self, images_B3SS):
        return self.narrow(self.wide(images_B3SS.flatten(1)[:, :4]))


@pytest.mark.parametrize(
    "mib, count", [(0.01, 256), (1, 24), (5, 4), (30, 1)], ids=["tiny", "small", "large", "over"]
)
def test_as_many_crops_pass_as_keep_the_widest_layer_in_memory(mib, count):
    network = Wide(mib)
    assert crops_per_pass(network, torch.zeros(1, 3, 2, 2)) == count
    assert not any(module._forward_hooks for module in network.modules())


def test_images_pass_a_proposer_by_their_size():
    assert images_per_pass((640, 864)) == 1
    assert images_per_pass((128, 128)) == 24
    assert images_per_pass((32, 32)) == 256


def test_a_gpu_takes_many(monkeypatch):
    monkeypatch.setattr(pipeline.models.passes, "pick_device", lambda: "cuda")
    assert images_per_pass((640, 864)) == 256
    assert crops_per_pass(Wide(30).to("meta"), torch.zeros(1, 3, 2, 2, device="meta")) == 256


@pytest.fixture(scope="module")
def clip():
    return Clip.load(ClipSource(f"local-dir:{EMBEDDED_CLIP}"))


def test_the_classifier_asks_clip_how_many_where_nobody_says(clip, monkeypatch):
    monkeypatch.setattr(pipeline.models.passes, "_LAYER_BYTES", 3 * MIB)
    few = clip.per_pass(clip.side)
    assert 1 < few < 256
    assert clip.per_pass(2 * clip.side) == few // 4
    passes = []
    hook = clip.model.visual.register_forward_hook(
        lambda _module, _inputs, output: passes.append(
            (len(output), current_thread() is not main_thread())
        )
    )
    count = 2 * few + 1
    regions = [(torch.zeros(3, 40, 40), torch.ones(count, 40, 40))]
    found = []
    for batch, number in ((None, 1), (count, 1), (None, 2), (few, 2)):
        with threads(number):
            embeds = CropClassifier(clip, CropSettings(), batch).embed(regions)
        found.append(embeds[0].clip_embeds_VD)
    hook.remove()
    # The first one is tried where nobody says. A crop left over has all cores.
    assert [size for size, _ in passes] == [1, few, few, 1, count, 1, few, few, 1, few, few, 1]
    in_threads = [beside for _, beside in passes]
    assert in_threads == 6 * [False] + [True, True] + 4 * [False]
    for others in found[1:]:
        torch.testing.assert_close(others, found[0])


@pytest.mark.parametrize(
    "number, most, at_once, expected",
    [
        (0, 4, 2, []),
        (10, 4, 1, [[4], [4], [2]]),
        (10, 4, 2, [[4, 4], [1, 1]]),
        (7, 1, 2, [[1, 1], [1, 1], [1, 1], [1]]),
        (7, 1, 8, [[1] * 7]),
        (10, 1, 8, [[1] * 8, [1, 1]]),
        (25, 40, 2, [[13, 12]]),  # one more hardly counts
        (11, 40, 2, [[5, 5], [1]]),  # among so few it does
        (9, 40, 2, [[9]]),  # not worth two readings of all weights
        (81, 40, 2, [[40, 40], [1]]),
        (35, 256, 8, [[35]]),
        (3, 2, 4, [[1, 1], [1]]),  # three of four cores would leave one idle
    ],
)
def test_rounds_of_passes_are_even(number, most, at_once, expected):
    assert list(rounds(number, most, at_once)) == expected
    assert sum(map(sum, rounds(number, most, at_once))) == number


@pytest.mark.parametrize(
    "number, at_once", [(1, 1), (2, 2), (7, 7), (8, 8), (9, 8), (11, 5), (13, 6), (64, 8)]
)
def test_no_more_than_an_eighth_of_the_cores_is_left_over(number, at_once):
    with threads(number):
        assert passes_at_once("cpu") == at_once
        assert passes_at_once("cuda") == 1


def test_large_images_do_not_pass_side_by_side_without_end():
    with threads(8):
        assert proposals_at_once((640, 640), 1) == 8
        assert proposals_at_once((640, 2560), 1) == 2
        assert proposals_at_once((4000, 4000), 1) == 1
        assert proposals_at_once((128, 128), 24) == 8


def test_a_thread_that_cannot_start_leaves_none_waiting(monkeypatch):
    start, started = Thread.start, []

    def short_of_threads(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(Thread, "start", short_of_threads)
    before = torch.get_num_threads()
    with threads(7), pytest.raises(RuntimeError, match="can't start new thread"):
        in_passes(len, [[1]] * 7, 1, 7)
    assert torch.get_num_threads() == before
    started[0].join(timeout=30)
    assert not started[0].is_alive()


@pytest.mark.parametrize("inference", [True, False])
def test_passes_of_a_round_run_at_once_and_share_the_threads(inference):
    all_here = Barrier(2, timeout=30)

    def work(part: list[int]) -> tuple[list[int], int, bool]:
        all_here.wait()  # breaks unless both are in it
        return part, torch.get_num_threads(), torch.is_inference_mode_enabled()

    with threads(4), torch.inference_mode(inference):
        found = in_passes(work, [1, 2, 3, 4, 5, 6, 7, 8], 2, 2)
        assert torch.get_num_threads() == 4
    assert found == [([first, first + 1], 2, inference) for first in (1, 3, 5, 7)]


def test_threads_that_come_later_are_not_short_of_threads():
    with threads(2):
        in_passes(len, [1, 2], 1, 2)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2


def test_an_error_is_raised_when_its_round_has_ended():
    ended = []

    def work(part: list[int]) -> None:
        if part == [2]:
            raise ValueError("the second of four")
        time.sleep(0.1)
        ended.append(part[0])

    with threads(2), pytest.raises(ValueError, match="the second of four"):
        in_passes(work, [1, 2, 3, 4], 1, 2)
    assert ended == [1]


@pytest.fixture(scope="module")
def three():
    return pa.concat_tables([decoded(TEST_SEED, 1)] * 3)


def logits_of(stage, images):
    return [np.frombuffer(row["mask_logits"], np.float32) for row in stage(images).to_pylist()]


@pytest.mark.parametrize("hooked", [False, True])
def test_proposals_are_those_of_one_pass(hooked, three, monkeypatch):
    stage = Propose("maskformer", None, 32, "float32")
    calls = []
    propose = stage.model.propose

    def recorded(images):
        calls.append((len(images), current_thread() is main_thread()))
        return propose(images)

    monkeypatch.setattr(stage.model, "propose", recorded)
    if hooked:  # what it keeps belongs to one pass
        stage.model._model.register_forward_hook(lambda *_: None)
    found = []
    for most, number in ((256, 1), (2, 1), (1, 2)):
        monkeypatch.setattr(pipeline.stages.propose, "images_per_pass", lambda _size, n=most: n)
        with threads(number):
            found.append(logits_of(stage, three))
    assert calls[:3] == [(3, True), (2, True), (1, True)]
    assert sorted(calls[3:]) == [(1, hooked), (1, hooked), (1, True)]
    for others in found[1:]:
        for at_once, in_parts in zip(found[0], others, strict=True):
            np.testing.assert_allclose(in_parts, at_once, rtol=1e-3, atol=1e-3)


def test_half_precision_reaches_the_threads(three, monkeypatch):
    monkeypatch.setattr(pipeline.stages.propose, "images_per_pass", lambda _size: 1)
    stages = {
        arithmetic: Propose("maskformer", None, 32, "float32", arithmetic=arithmetic)
        for arithmetic in ("fp32", "bf16")
    }
    found = {}
    for number in (1, 2):
        with threads(number):
            for arithmetic, stage in stages.items():
                found[arithmetic, number] = logits_of(stage, three)[0]
    exact, alone, beside = (found[key] for key in (("fp32", 1), ("bf16", 1), ("bf16", 2)))
    assert np.abs(alone - exact).mean() > 10 * np.abs(beside - alone).mean()


def test_the_proposers_of_ours_are_reentrant_and_others_are_not_asked():
    assert find_proposer("maskformer").is_reentrant
    assert find_proposer("per-pixel").is_reentrant
    assert find_proposer("transformers").is_reentrant is None
    assert is_reentrant(Wide(1))
    hooked = Wide(1)
    hooked.wide.register_forward_pre_hook(lambda *_: None)
    assert not is_reentrant(hooked)
