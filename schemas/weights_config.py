"""Settings of `segmill weights`."""

from pydantic import Field

from schemas.config import Config, LocalPath


class WeightsConvertConfig(Config):
    """Write the models of a checkpoint of the paper's authors as directories that Segmill loads."""

    checkpoint: LocalPath = Field(description="the authors' checkpoint: .pth or .safetensors")
    output: LocalPath = Field(description="directory to write: proposer, clip, and learned prompts")
    clip_checkpoint: LocalPath | None = Field(
        None, description="checkpoint to take the CLIP from, where the first one has none"
    )
    vocabulary: LocalPath | None = Field(
        None, description="classes it was trained on, recorded with it; those flagged seen, if any"
    )
    heads: int = Field(8, ge=1, description="attention heads of the transformer decoder")
    res5_dilations: tuple[int, ...] | None = Field(
        None,
        description="dilation of each block of res5; if absent 1,2,4 with the three-convolution "
        "stem (R101c), else all 1",
    )
    stride_in_1x1: bool = Field(False, description="ResNet strides on the first 1x1 convolution")
    pixel_mean: tuple[float, float, float] = Field(
        (123.675, 116.28, 103.53), description="mean of the proposer's input, RGB"
    )
    pixel_std: tuple[float, float, float] = Field(
        (58.395, 57.12, 57.375), description="standard deviation of the proposer's input, RGB"
    )
    size_divisibility: int | None = Field(
        None,
        ge=1,
        description="images are padded to a multiple of this; if absent 32 for a MaskFormer, 1 for "
        "a per-pixel network",
    )
    short_edge: int = Field(640, ge=16, description="shorter side of the images it was tested on")
    long_edge: int = Field(2560, ge=16, description="limit of their longer side")
    clip_text_heads: int | None = Field(
        None, ge=1, description="heads of CLIP's text tower; if absent its width / 64"
    )
    clip_vision_heads: int | None = Field(
        None, ge=1, description="heads of CLIP's image tower; if absent its width / 64"
    )
    licence: str = Field("unknown", description="licence of the weights, recorded with them")


class WeightsInspectConfig(Config):
    """Say what a file or directory of weights holds, without running anything of it."""

    weights: LocalPath = Field(description="checkpoint, learned prompt, or a directory of a model")
