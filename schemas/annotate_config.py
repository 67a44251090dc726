"""Settings of `segmill annotate`, in the groups that other commands share."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.config import (
    Config,
    LocalPath,
    LocalText,
    LockTtl,
    ObjectStoreMb,
    PlanMemoryMb,
    RemoteSettings,
    RowsPerFile,
)
from schemas.manifest import Encoding

IMAGE_EXTENSIONS = (
    "avif", "bmp", "gif", "j2k", "jp2", "jpeg", "jpf", "jpg", "jpx", "mpo", "pgm", "png", "pnm",
    "ppm", "qoi", "tga", "tif", "tiff", "webp",
)  # fmt: skip


# A number, or one that the run chooses by what it measures on its first images.
SizeOrAuto = Annotated[int, Field(ge=1)] | Literal["auto"]


class SourceSettings(RemoteSettings):
    """What to read, and the limits within which a file is accepted as an image."""

    extensions: tuple[str, ...] = Field(
        IMAGE_EXTENSIONS,
        description="file name endings taken from a folder or prefix; '*' takes every file; with "
        "`tar` or `parquet` also the images in such files, which a source may name without",
    )
    image_column: str | None = Field(
        None,
        description="column of images, as bytes or Hugging Face's struct, of a Parquet file that "
        "has several",
    )
    max_image_bytes: int = Field(
        256 * 2**20, gt=0, description="larger files are quarantined unread"
    )
    max_image_pixels: int = Field(
        100_000_000, gt=0, description="images of more pixels are quarantined undecoded"
    )
    max_image_frames: int = Field(
        10_000,
        gt=0,
        description="files of more frames or pages are quarantined; of fewer the first is taken",
    )
    max_decode_seconds: float = Field(
        30.0, gt=0, description="processor time that decoding one image may take"
    )
    max_decode_mb: int = Field(
        2048, ge=64, description="memory that decoding one image may take, in MiB"
    )
    jpeg_draft: bool = Field(
        False,
        description="decode JPEGs of more than twice the needed size at 1/2, 1/4 or 1/8: faster, "
        "but pixels differ from the paper's resize, by 1 to 2 of 255 levels on average",
    )
    trust_lists: bool = Field(
        False,
        description="let a list read from a store name local files, and one read from the web "
        "name local files and stores",
    )


class ProposerSettings(Config):
    """Which model proposes masks, and the size of the image it sees (spec 2.1)."""

    proposer: str = Field("maskformer", description="mask proposal model; see `segmill models`")
    proposer_weights: str | None = Field(
        None,
        description="directory of the proposer's weights, here or in a store (s3://...: every "
        "machine fetches it once); the embedded tiny model if absent",
    )
    proposer_precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="arithmetic of the proposer's network; in half precision masks differ a little",
    )
    proposer_modules: tuple[str, ...] = Field(
        (),
        description="Python modules to import first: they register the architecture of a "
        "detectron2 config, and their add_..._config functions are applied to it",
    )
    short_edge: int | None = Field(
        None, ge=16, description="resize the shorter side to this; the proposer's own if absent"
    )
    long_edge: int | None = Field(
        None, ge=16, description="limit of the longer side; the proposer's own if absent"
    )


class ClassifierSettings(Config):
    """Which CLIP classifies the regions, how it is prompted, and how crops are cut (spec 2.4)."""

    classifier: str = Field("crops", description="region classifier; see `segmill models`")
    image_side: int | None = Field(
        None,
        ge=16,
        description="one-pass and pooling: side of the square to which CLIP's input, the whole "
        "image, is squashed; positions are interpolated; if absent CLIP's own",
    )
    one_pass_layers: int | None = Field(
        None,
        ge=1,
        description="one-pass: CLIP's last layers in which every mask has a token of its own; if "
        "absent all of them",
    )
    clip: str = Field(
        "embedded",
        description="open_clip architecture, hf-hub:ORG/NAME, local-dir:PATH, or `embedded`",
    )
    clip_weights: str | None = Field(
        None,
        description="open_clip tag, or a .safetensors / .pt file, here or in a store, for an "
        "architecture name; for a file of OpenAI's weights one that ends in -quickgelu",
    )
    clip_precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="arithmetic of CLIP's towers"
    )
    crop_side: int | None = Field(
        None,
        ge=16,
        description="side of CLIP's input, in the paper always 224; if absent CLIP's own",
    )
    logit_scale: Literal["paper", "model"] = Field(
        "paper", description="what multiplies CLIP's cosines: the paper's 100, or CLIP's own scale"
    )
    prompts: str = Field(
        "single",
        description="single, vild, imagenet, a template with {}, a text file of templates, or a "
        ".safetensors file of a learned prompt",
    )
    region_prompts: str | None = Field(
        None, description="prompts of the region classifier, where not those of the query head"
    )
    mask_threshold: float = Field(0.5, gt=0, lt=1, description="a pixel is in the mask above this")
    mask_fill: Literal["mean", "zero"] = Field(
        "mean", description="colour outside the mask: CLIP's mean colour, or black"
    )
    mask_expand_ratio: float = Field(1.0, ge=1, description="grow each box about its centre")
    mask_matting: bool = Field(False, description="blend crops with the soft mask")
    prune_iou: float | None = Field(
        None,
        gt=0,
        le=1,
        description="crops: proposals whose masks overlap by this IoU share the crop of one of "
        "them; approximate; if absent each has its own",
    )


class PruningSettings(Config):
    """Which proposals are dropped before CLIP and from the labels (approximate); absent: none."""

    prune_min_area: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="drop proposals whose mask is empty or a smaller share of the image",
    )
    prune_min_stability: float | None = Field(
        None,
        gt=0,
        le=1,
        description="drop proposals whose mask changes more with its threshold: IoU of the masks "
        "one logit above and one below",
    )
    prune_min_won: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="drop proposals that are the largest soft mask on a smaller share of the image",
    )


class EnsembleSettings(Config):
    """How query scores and CLIP scores are fused into labels (spec 2.6, 2.7)."""

    ensemble: bool = Field(True, description="off: the proposer's own query scores alone")
    ensemble_weight: float = Field(
        0.8, ge=0, le=1, description="exponent of the query score for seen classes; 0: CLIP alone"
    )
    oracle_truth: LocalText | None = Field(
        None,
        description="directory of PNG label maps: label proposals by their IoU with the truth "
        "instead of by any score (the upper bound that the proposals leave)",
    )
    invalid_proposals: Literal["boosted", "dropped"] = Field(
        "boosted",
        description="proposals without a pixel above the threshold: CLIP score 1 as in the "
        "reference (quirk B-3), or left out of the labels",
    )
    min_score: float = Field(
        0.0, ge=0, le=1, description="pixels scored below this are left without a label"
    )


class ExecutionSettings(Config):
    """Where and how wide the pipeline runs."""

    address: str = Field("local", description="Ray cluster to join, or `local` for this machine")
    propose_actors: SizeOrAuto = Field(
        1,
        description="size of the mask proposal pool, or `auto`: by the service times that the run "
        "measures on its first images, within what the cluster has",
    )
    classify_actors: SizeOrAuto = Field(
        1, description="size of the CLIP classification pool, or `auto`"
    )
    propose_gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs of a proposal actor; if absent 1 where there are any, 0.5 of only one",
    )
    classify_gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs of a CLIP actor; if absent 1 where there are any, 0.5 of only one",
    )
    propose_resources: dict[str, float] = Field(
        {},
        description="custom Ray resources that a proposal actor takes, as propose=1: it lands on "
        "machines that offer them",
    )
    classify_resources: dict[str, float] = Field(
        {}, description="custom Ray resources that a CLIP actor takes, as classify=1"
    )
    propose_accelerator: str | None = Field(
        None, description="Ray's name of the card that a proposal actor needs, as L4 or A100-80G"
    )
    classify_accelerator: str | None = Field(
        None, description="Ray's name of the card that a CLIP actor needs"
    )
    ship_code: bool = Field(
        False,
        description="send this installation's code to the workers of the cluster; off: an image, "
        "a shared environment or the job's working directory has it",
    )
    propose_batch: SizeOrAuto = Field(
        8,
        description="images per call of the proposer, or `auto`: the smallest of 8, 16 and 32 that "
        "is within 5 % of the fastest on the first images of a run",
    )
    classify_batch: SizeOrAuto = Field(
        8, description="images per call of the classifier, or `auto`"
    )
    crop_batch: int | None = Field(
        None,
        ge=1,
        description="crops, or whole images, per forward pass of CLIP, one pass at a time; if "
        "absent 256 on a GPU, and on a CPU as many as keep the results of a layer in memory that "
        "the process has, in passes side by side",
    )
    mask_precision: Literal["float32", "float16", "uint8"] = Field(
        "float16", description="mask logits between the two pools"
    )
    object_store_mb: ObjectStoreMb = None

    @model_validator(mode="after")
    def _one_machine_is_no_cluster(self) -> Self:
        of_a_cluster = (
            "propose_resources", "classify_resources", "propose_accelerator",
            "classify_accelerator", "ship_code",
        )  # fmt: skip
        given = [name for name in of_a_cluster if getattr(self, name)]
        if self.address == "local" and given:
            raise ValueError(f"{given[0]} is of a cluster; give its address")
        for name in of_a_cluster[:2]:
            for resource, amount in getattr(self, name).items():
                if amount <= 0 or resource in ("CPU", "GPU", "memory", "object_store_memory"):
                    raise ValueError(
                        f"{name} has {resource}={amount:g}; it takes custom resources, of more "
                        "than 0 (GPUs are given by propose_gpus and classify_gpus)"
                    )
        return self


class AnnotateConfig(
    SourceSettings,
    ProposerSettings,
    PruningSettings,
    ClassifierSettings,
    EnsembleSettings,
    ExecutionSettings,
):
    """Label every image of SOURCE with the classes of a vocabulary, as a Parquet dataset."""

    source: str = Field(
        description="folder, glob, s3:// prefix, or a .txt / .parquet list of image URIs"
    )
    vocabulary: LocalPath = Field(description="YAML or text file of class names")
    output: str = Field(
        description="dataset directory: a path, or a URL such as s3://bucket/labels"
    )
    rows_per_file: RowsPerFile = 32_768
    keep_embeddings: Encoding | None = Field(
        None,
        description="store masks and CLIP vectors: other classes, prompts and thresholds then cost "
        "no model. exact: megabytes an image, labels as from a full run, and another CLIP costs no "
        "proposals; compact: tens of kilobytes an image, labels nearly so",
    )
    retry_quarantined: bool = Field(
        False, description="try the images again that were given up, also where nothing changed"
    )
    lock_ttl_s: LockTtl = 60.0
    plan_memory_mb: PlanMemoryMb = 1024
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="exit with 1 when more of the images are quarantined"
    )

    @model_validator(mode="after")
    def _edges_are_ordered(self) -> "AnnotateConfig":
        if self.short_edge and self.long_edge and self.short_edge > self.long_edge:
            raise ValueError(f"short_edge {self.short_edge} is above long_edge {self.long_edge}")
        return self

    @model_validator(mode="after")
    def _the_oracle_needs_masks(self) -> "AnnotateConfig":
        if self.keep_embeddings == "compact" and self.oracle_truth is not None:
            raise ValueError("oracle_truth compares masks, which compact embeddings do not hold")
        return self
