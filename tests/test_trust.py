"""Margins, disagreement and stability of segments."""

import numpy as np
import pytest
import torch

from pipeline import fusion
from pipeline.fusion import label_map
from pipeline.masks import SoftMasks, mask_probs
from pipeline.models.clip import ClipSource
from pipeline.segments import KeptLabels
from pipeline.stages import label, soft_masks
from pipeline.stages.compact import compacted
from pipeline.trust import HeadScores, divergence, segment_trust, stability
from schemas.annotation import EMBEDDED, table_from_rows
from tests.bench.trust import embedded, unit
from tests.classify import make_classify
from tests.test_quick_labels import PADDED, RESIZED, scene


@pytest.mark.parametrize("tile_floats", [1, 2**20], ids=["row by row", "whole"])
def test_margins_are_the_lead_over_the_second_class(monkeypatch, tile_floats):
    monkeypatch.setattr(fusion, "TILE_FLOATS", tile_floats)
    logits_Qhw, scores_QK = scene()
    masks_QHW = mask_probs(logits_Qhw, PADDED, RESIZED)
    best, second = torch.einsum("qk,qhw->khw", scores_QK, masks_QHW).topk(2, dim=0).values
    found = label_map(scores_QK, masks_QHW, RESIZED)
    torch.testing.assert_close(found.margins_HW, (best - second) / best, atol=2e-4, rtol=0)
    assert 0.05 < found.margins_HW.mean() < 0.95


def test_a_class_without_rival_leads_by_all():
    found = label_map(torch.tensor([[0.4]]), torch.full((1, 2, 3), 0.5), (2, 3))
    assert (found.margins_HW == 1).all() and torch.allclose(found.scores_HW, torch.tensor(0.4))


def test_without_evidence_there_is_no_margin():
    assert not label_map(torch.zeros(0, 4), torch.zeros(0, 2, 3), (2, 3)).margins_HW.any()


def test_divergence_is_between_equal_and_disjoint():
    first = torch.tensor([[0.2, 0.2, 0.0], [0.5, 0.0, 0.0], [0.5, 0.5, 0.0]])
    second = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.3, 0.3], [1.0, 0.0, 0.0]])
    mixed, p = np.array([0.75, 0.25]), np.array([0.5, 0.5])
    expected = 0.5 * (p * np.log2(p / mixed)).sum() + 0.5 * np.log2(1 / 0.75)
    np.testing.assert_allclose(divergence(first, second), [0, 1, expected], atol=1e-6)


def test_stability_is_the_iou_of_a_mask_under_a_shifted_threshold():
    logits = torch.tensor([[[5.0, 5.0, 0.5, -0.5, -5.0]], [[0.5] * 5], [[-9.0] * 5]])
    assert stability(logits).tolist() == [0.5, 0.0, 0.0]


def two_halves(query, clip, valid=(True, True)):
    """Two sharp masks, left and right, and what the heads say of them."""
    logits = torch.full((2, 8, 8), -9.0)
    logits[0, :, :4], logits[1, :, 4:] = 9.0, 0.5
    valid_Q = torch.tensor(valid)
    region_VK = None if clip is None else torch.tensor(clip)
    query_QK = None if query is None else torch.tensor(query)
    fused_QK = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    scores = HeadScores(query_QK, region_VK, valid_Q, fused_QK)
    masks = SoftMasks(logits, (32, 32), (32, 32))
    return scores, masks, label_map(fused_QK, masks, (32, 32))


def trust_of(scores, masks, labels, min_score=0.0):
    kept = labels.kept(min_score)
    return segment_trust(scores, masks, kept.classes_HW, kept.occurring())


def test_segments_have_the_measures_of_their_proposals():
    same, apart = [[0.9, 0.1], [1.0, 0.0]], [[0.9, 0.1], [0.0, 1.0]]
    trust = trust_of(*two_halves(same, apart))
    left, right = trust.of(0), trust.of(1)
    assert left["disagreement"] < 0.01 and right["disagreement"] > 0.99
    assert left["stability"] > 0.99 and right["stability"] < 0.01


def test_one_head_alone_cannot_disagree():
    both = [[0.9, 0.1], [0.0, 1.0]]
    for heads in ((both, None), (None, both)):
        trust = trust_of(*two_halves(*heads))
        assert trust.of(0)["disagreement"] is None and trust.of(0)["stability"] > 0.99


def test_proposals_without_a_crop_do_not_count():
    trust = trust_of(*two_halves([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0]], (True, False)))
    assert trust.of(0)["disagreement"] == pytest.approx(1.0)


def test_a_segment_between_the_nodes_has_its_measures_too():
    scores, masks, labels = two_halves([[0.9, 0.1]] * 2, [[0.9, 0.1]] * 2)
    labels.classes_HW[:] = 0
    labels.classes_HW[17, 20] = 1  # nodes are at 4n + 1 or 2
    trust = trust_of(scores, masks, labels)
    assert trust.classes_N.tolist() == [0, 1]
    assert trust.of(1)["stability"] < 0.1  # the mask of the right half


def test_pixels_under_the_threshold_are_of_no_segment():
    trust = trust_of(*two_halves([[0.9, 0.1]] * 2, [[0.9, 0.1]] * 2), 0.95)
    assert not len(trust.classes_N)


def segments_of(weight, encoding, **changes):
    rng = np.random.default_rng(1)
    text_KD = unit(rng.standard_normal((9, 16)))
    names = tuple(f"thing {n}" for n in range(9))
    source = ClipSource("embedded", None, "fp32", None)
    label = make_classify(source, text_KD, names, ensemble_weight=weight).label
    table = table_from_rows([embedded(rng, 0, text_KD, (60, 90, 12)) | changes], EMBEDDED)
    table = compacted(table.to_pylist(), "float16") if encoding == "compact" else table
    return {segment["label"]: segment for segment in label(table).to_pylist()[0]["segments"]}


def test_both_encodings_give_nearly_the_same_measures():
    exact, compact = (segments_of(0.6, encoding) for encoding in ("exact", "compact"))
    large = [name for name, segment in exact.items() if segment["area"] > 100]
    assert len(large) > 3
    for name in large:
        for measure, tolerance in (("margin", 0.05), ("disagreement", 0.02), ("stability", 0.1)):
            found = compact[name][measure]
            assert found == pytest.approx(exact[name][measure], abs=tolerance), (name, measure)
            assert 0 <= found <= 1


def test_the_quick_labels_of_the_host_are_taken_to_the_masks(monkeypatch):
    # "meta" stands in for a GPU: as there, what is on it cannot be mixed with what is not.
    for module in (label, soft_masks):
        monkeypatch.setattr(module, "pick_device", lambda: "meta")
    quick = KeptLabels(np.zeros((60, 90), np.int64), np.ones(9), np.ones(9))
    monkeypatch.setattr(label, "quick_labels", lambda *arguments: quick)
    found = []

    def trust(scores, masks, kept_HW, classes_N):
        found.extend((scores.fused_QK, masks.logits_Qhw, kept_HW, classes_N))

    monkeypatch.setattr(label, "segment_trust", trust)
    assert list(segments_of(0.6, "compact")) == ["thing 0"]
    assert [values.device.type for values in found] == ["meta"] * 4


def test_rows_without_query_head_have_margins_and_no_disagreement():
    segments = segments_of(0.6, "exact", query_embeds=None, void_logits=None)
    assert segments
    for segment in segments.values():
        assert segment["disagreement"] is None and 0 < segment["margin"] <= 1
