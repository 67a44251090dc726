"""Parts of the training of the embedded models; the training itself is run by its job."""

import pytest
import torch
from open_clip.model import CLIP

from pipeline.training.clip import contrastive_loss, encode_text, model_config, train_tokenizer

CORPUS = ["a photo of a red circle.", "There is a striped blue ground in the scene"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 300)


def test_any_text_tokenises_and_end_has_the_highest_id(tokenizer):
    for text in ("A Red CIRCLE", "zèbre 斑马 🦓", ""):
        tokens = tokenizer(text)["input_ids"]
        assert tokens[-1] == max(tokens) == len(tokenizer) - 1
        assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer("A Red CIRCLE")["input_ids"] == tokenizer("a red circle")["input_ids"]
    assert tokenizer.pad_token_id == 0


@torch.no_grad()
def test_short_text_forward_equals_the_padded_one(tokenizer):
    torch.manual_seed(0)
    model = CLIP(**model_config(len(tokenizer))).eval()
    texts = ["a red circle", "There is a striped blue ground in the scene"]
    padded = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
    expected = model.encode_text(padded["input_ids"], normalize=True)
    torch.testing.assert_close(encode_text(model, tokenizer, texts), expected)


def test_a_caption_that_is_also_true_costs_nothing():
    logits = torch.tensor([[5.0, 4.0], [0.0, 3.0]])
    equal = torch.eye(2, dtype=torch.bool)
    also_true = torch.tensor([[True, False], [True, True]])  # caption 1 is true of both pictures
    assert contrastive_loss(logits, equal, also_true) < contrastive_loss(logits, equal, equal)
