"""Contrastive training of the tiny CLIP: a small tokenizer, then the two towers of open_clip.

Dimension key: N pictures or captions of a batch, L tokens, D embedding, S side.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from safetensors.torch import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from pipeline.training.captions import (
    COLOURLESS,
    could_be_true_of,
    is_true_of,
    make_caption,
    meaning,
)
from pipeline.training.pictures import CLIP_MEAN, CLIP_STD, Pictures, normalise
from pipeline.training.schedule import parameter_groups, warm_cosine

logger = logging.getLogger(__name__)

PAD, START, END = "<pad>", "<start>", "<end>"
FIRST_LOGIT_SCALE, LAST_LOGIT_SCALE = 14.0, 100.0


@dataclass(frozen=True)
class ClipTraining:
    """Settings of the contrastive training."""

    steps: int = 1000
    image_steps: int = 600
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 100
    colourless_share: float = 0.25  # pictures shown in grey, so that form is learned without colour
    vocab_size: int = 512  # at most; the corpus may need fewer merges
    seed: int = 0


@dataclass(frozen=True)
class Phase:
    """One run of the loop; tuning keeps the logit scale at its end and spares unmet pairs."""

    name: str
    steps: int
    learning_rate: float
    is_tuning: bool = False


def model_config(vocab_size: int) -> dict[str, Any]:
    """Return the open_clip `model_cfg` of the tiny CLIP."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 48,
            "patch_size": 8,
            "width": 128,
            "layers": 4,
            "head_width": 64,
        },
        "text_cfg": {
            "context_length": 77,  # room for 16 learned context vectors, as the paper uses
            "vocab_size": vocab_size,
            "width": 128,
            "heads": 2,
            "layers": 2,
            "hf_tokenizer_name": "local",  # makes open_clip read the tokenizer beside the weights
        },
    }


def train_tokenizer(corpus: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a lower-casing byte-level BPE: any text tokenises, and END has the highest id.

    open_clip pools the text tower at the position of the highest id, and pads with id 0.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[PAD, START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([END])
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END
    )


def train_clip(
    pictures: Pictures, tokenizer: PreTrainedTokenizerFast, settings: ClipTraining
) -> CLIP:
    """Train both towers from nothing on pictures of seen classes in their own colours."""
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = CLIP(**model_config(len(tokenizer))).to(device)
    model.logit_scale.requires_grad_(False)
    named = pictures.select(~pictures.is_recoloured_N)
    _fit(model, named, tokenizer, settings, Phase("both", settings.steps, settings.learning_rate))
    return model.cpu().eval()


def tune_image_tower(
    model: CLIP, pictures: Pictures, tokenizer: PreTrainedTokenizerFast, settings: ClipTraining
) -> None:
    """Train the image tower on, the text tower locked, with recoloured pictures among the rest.

    By then the text tower composes (a name is the sum of its words), while the image tower still
    ties shapes to the colours they came in; this unties them. A proposer that was trained against
    the text tower stays valid.
    """
    model.to("cuda" if torch.cuda.is_available() else "cpu").train().requires_grad_(False)
    model.visual.requires_grad_(True)
    phase = Phase("image", settings.image_steps, settings.learning_rate, is_tuning=True)
    _fit(model, pictures, tokenizer, settings, phase)
    model.cpu().eval()


def _fit(
    model: CLIP,
    pictures: Pictures,
    tokenizer: PreTrainedTokenizerFast,
    settings: ClipTraining,
    phase: Phase,
) -> None:
    rng = np.random.default_rng([settings.seed, 2, phase.is_tuning])
    device = model.positional_embedding.device
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), betas=(0.9, 0.98))
    meanings_N3 = np.asarray([meaning(index) for index in pictures.class_indices_N])
    weights = _balanced(pictures.class_indices_N)
    started, mean_loss = time.monotonic(), 0.0
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * warm_cosine(step, phase.steps, settings.warmup)
        model.logit_scale.fill_(_log_scale(1.0 if phase.is_tuning else step / phase.steps))
        chosen = rng.choice(len(weights), settings.batch_size, p=weights)
        grey_N = rng.random(settings.batch_size) < settings.colourless_share
        nameless_N = grey_N | pictures.is_recoloured_N[chosen]
        captions, texts_N3 = _captions(rng, pictures.class_indices_N[chosen], nameless_N)
        shown_N3 = meanings_N3[chosen]
        shown_N3[nameless_N, 1] = COLOURLESS
        true_NN = is_true_of(texts_N3, shown_N3)
        equal_NN = (texts_N3[:, None] == texts_N3[None]).all(-1)
        open_NN = could_be_true_of(texts_N3, shown_N3)
        with torch.autocast(device.type, torch.bfloat16):
            image_features = model.encode_image(
                _augmented(rng, pictures.images_N3SS[chosen], grey_N).to(device), normalize=True
            )
            text_features = encode_text(model, tokenizer, captions)
        logits = model.logit_scale.exp() * image_features.float() @ text_features.float().T
        if phase.is_tuning:
            logits = logits.masked_fill(torch.from_numpy(open_NN).to(device).T, -torch.inf)
        loss = contrastive_loss(
            logits, torch.from_numpy(equal_NN).to(device), torch.from_numpy(true_NN).to(device)
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 100 == 99:
            elapsed = time.monotonic() - started
            logger.info(
                "clip %s step %d loss %.4f %.0f s", phase.name, step + 1, mean_loss, elapsed
            )


def contrastive_loss(logits_NN: Tensor, equal_NN: Tensor, true_NN: Tensor) -> Tensor:
    """Return the symmetric InfoNCE of pictures (rows) and their captions (columns).

    `equal_NN` marks captions of one meaning: all of them are a picture's positives. `true_NN` is
    (caption, picture): a caption that is true of a picture without being its own is not held
    against it; seen from the caption, every picture it is true of is a positive.
    """
    ignored = true_NN.T & ~equal_NN
    rows = logits_NN.masked_fill(ignored, -torch.inf)
    from_pictures = rows.logsumexp(1) - rows.masked_fill(~equal_NN, -torch.inf).logsumexp(1)
    from_captions = logits_NN.logsumexp(0) - logits_NN.masked_fill(
        ~true_NN.T, -torch.inf
    ).logsumexp(0)
    return (from_pictures.mean() + from_captions.mean()) / 2


def encode_text(model: CLIP, tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> Tensor:
    """Return L2-normalised text features (N, D).

    The same as `model.encode_text`, on sequences cut after their last END: attention is causal and
    pooling reads END, so the padding that is left out could not have mattered.
    """
    tokens_NL = torch.as_tensor(tokenizer(list(captions), padding=True)["input_ids"])
    tokens_NL = tokens_NL.to(model.positional_embedding.device)
    length = tokens_NL.shape[1]
    hidden = model.token_embedding(tokens_NL) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    pooled = hidden[torch.arange(len(hidden), device=hidden.device), tokens_NL.argmax(-1)]
    return normalize(pooled @ model.text_projection, dim=-1)


def save_clip(model: CLIP, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write an open_clip local directory; weights are stored as fp16 to be small."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": model_config(len(tokenizer)),
        "preprocess_cfg": {
            "mean": CLIP_MEAN,
            "std": CLIP_STD,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    (directory / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors")
    tokenizer.save_pretrained(str(directory))


def _log_scale(progress: float) -> float:
    """Return the log of the logit scale: from 14 to 100 over the first half, then constant.

    Inference multiplies cosines by 100 whatever was learned; a run this short would learn 18.
    """
    first, last = math.log(FIRST_LOGIT_SCALE), math.log(LAST_LOGIT_SCALE)
    return first + (last - first) * min(1.0, 2 * progress)


def _balanced(class_indices_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sampling weights (N,) under which every class is equally likely."""
    counts = np.bincount(class_indices_N)
    weights = 1 / counts[class_indices_N]
    return np.asarray(weights / weights.sum())


def _captions(
    rng: np.random.Generator, class_indices_N: NDArray[np.int64], grey_N: NDArray[np.bool_]
) -> tuple[list[str], NDArray[np.int64]]:
    captions, meanings = zip(
        *(
            make_caption(rng, int(index), is_colourless=bool(grey))
            for index, grey in zip(class_indices_N, grey_N, strict=True)
        ),
        strict=True,
    )
    return list(captions), np.asarray(meanings)


def _augmented(rng: np.random.Generator, images_N3SS: Tensor, grey_N: NDArray[np.bool_]) -> Tensor:
    """Mirror half of the pictures, take colour from some, vary brightness, and normalise."""
    mirrored = torch.from_numpy(rng.random(len(images_N3SS)) < 0.5)
    images = torch.where(mirrored.view(-1, 1, 1, 1), images_N3SS.flip(-1), images_N3SS)
    grey = images.float().mean(1, keepdim=True).to(torch.uint8).expand_as(images)
    images = torch.where(torch.from_numpy(grey_N).view(-1, 1, 1, 1), grey, images)
    gain = torch.from_numpy(rng.uniform(0.94, 1.06, (len(images), 1, 1, 1))).float()
    return normalise(images) * gain
