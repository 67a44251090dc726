"""Where a model runs."""

import torch


def pick_device() -> str:
    """Return "cuda" where this process was given a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
