"""The settings of every command: the only place where a default is written.

Flags, environment variables (SEGMILL_*) and YAML files are derived from these models in
`jobs/cli.py`. Credentials are never settings: stores read theirs from the environment, a profile
or an instance role, so that a resolved config can be written beside the data.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.manifest import Encoding

IMAGE_EXTENSIONS = (
    "avif", "bmp", "gif", "j2k", "jp2", "jpeg", "jpf", "jpg", "jpx", "mpo", "pgm", "png", "pnm",
    "ppm", "qoi", "tga", "tif", "tiff", "webp",
)  # fmt: skip


# A type, because annotate and relabel take it alike.
ObjectStoreMb = Annotated[
    int | None,
    Field(
        ge=80,
        description="what is held between the stages, in MiB: the size of a local run's object "
        "store; on a cluster what a run may take of all stores; Ray's choice if absent",
    ),
]
PoolSize = Annotated[int, Field(ge=1)] | Literal["auto"]


class Config(BaseModel):
    """Base of all settings: immutable, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False)


class SourceSettings(Config):
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
    fetch_attempts: int = Field(
        4,
        ge=1,
        description="times that an image is asked for before its store is called unavailable",
    )
    web_timeout_seconds: float = Field(
        60.0, gt=0, description="time that a web server has for one image"
    )
    allow_private_addresses: bool = Field(
        False,
        description="let http(s) URLs lead to private, loopback, link-local and metadata addresses",
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
    oracle_truth: str | None = Field(
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
    propose_actors: PoolSize = Field(
        1,
        description="size of the mask proposal pool, or `auto`: by the service times that the run "
        "measures on its first images, within what the cluster has",
    )
    classify_actors: PoolSize = Field(
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
    propose_batch: int = Field(8, ge=1, description="images per call of the proposer")
    classify_batch: int = Field(8, ge=1, description="images per call of the classifier")
    crop_batch: int = Field(
        256, ge=1, description="crops, or whole images, per forward pass of CLIP"
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
    vocabulary: Path = Field(description="YAML or text file of class names")
    output: str = Field(
        description="dataset directory: a path, or a URL such as s3://bucket/labels"
    )
    rows_per_file: int = Field(32_768, ge=1, description="images per Parquet file, at most")
    keep_embeddings: Encoding | None = Field(
        None,
        description="store masks and CLIP vectors: other classes, prompts and thresholds then cost "
        "no model. exact: megabytes an image, labels as from a full run, and another CLIP costs no "
        "proposals; compact: tens of kilobytes an image, labels nearly so",
    )
    retry_quarantined: bool = Field(
        False, description="try the images again that were given up, also where nothing changed"
    )
    lock_ttl_s: float = Field(
        60.0, gt=0, description="a run that was silent for so many seconds has lost the dataset"
    )
    plan_memory_mb: int = Field(
        1024, ge=64, description="memory for comparing source and dataset, in MiB; the rest spills"
    )
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


class EvaluateConfig(Config):
    """Compare labels with a truth: mean IoU of seen and unseen classes, calibration, and more."""

    dataset: str = Field(
        description="dataset directory or URL; or, with --vocabulary, a directory of PNG label maps"
    )
    truth: str = Field(description="directory of truths named like the images")
    truth_format: Literal["classes", "segments", "bsds"] = Field(
        "classes",
        description="PNG maps of class indices; PNG maps of segment ids without classes (COCO "
        "panoptic: 0 is ignored); or the .mat files of BSDS500, by several people per image",
    )
    ignore: int | None = Field(
        None,
        ge=0,
        description="class index of the truth that counts nowhere; if absent 255, with over 255 "
        "classes 65535",
    )
    vocabulary: Path | None = Field(
        None, description="class names of the label maps, where DATASET is a directory of these"
    )
    protocol: Literal["reference", "detectron2"] = Field(
        "reference",
        description="which classes enter the first mean IoU (both are printed): as in the paper's "
        "code those in the truth or in a prediction, or as in detectron2 those in the truth",
    )
    version: int | None = Field(None, ge=1, description="dataset version; the newest if absent")
    proposals: bool = Field(
        False,
        description="measure the kept proposals as well (see annotate --keep-embeddings): recall, "
        "outlines, and the upper bound that they leave to any classifier",
    )
    workers: int | None = Field(
        None, ge=1, description="processes; if absent one per core where there are many images"
    )
    output: Path | None = Field(None, description="JSON file to write with every figure")
    page: Path | None = Field(None, description="HTML page to write, to look at the figures")

    @model_validator(mode="after")
    def _label_maps_are_no_dataset(self) -> "EvaluateConfig":
        if self.vocabulary is not None and self.version is not None:
            raise ValueError("version is of a dataset; with vocabulary label maps are read")
        if self.vocabulary is not None and self.proposals:
            raise ValueError("proposals are kept by a dataset; with vocabulary label maps are read")
        return self


class VersionsConfig(Config):
    """List the published versions of a dataset."""

    dataset: str = Field(description="dataset directory or URL")


class VerifyConfig(Config):
    """Read a version again and check files, hashes, the account of rows, and label maps."""

    dataset: str = Field(description="dataset directory or URL")
    version: int | None = Field(None, ge=1, description="dataset version; the newest if absent")
    sample: int = Field(
        1000, ge=0, description="images, about, of which the label map is checked as well"
    )
    all_label_maps: bool = Field(False, description="check the label map of every image")


class VacuumConfig(Config):
    """Delete old versions, and files that no version names; shows only what it would delete."""

    dataset: str = Field(description="dataset directory or URL")
    delete: bool = Field(False, description="really delete")
    keep_versions: int = Field(10, ge=1, description="the newest versions to keep")
    older_than_hours: float = Field(
        168.0, ge=0, description="keep every version and file that is younger"
    )
    lock_ttl_s: float = Field(
        60.0, gt=0, description="a run that was silent for so many seconds has lost the dataset"
    )


class ReportConfig(Config):
    """Write one self-contained HTML page with images, labels and, if given, the truth."""

    dataset: str = Field(description="dataset directory or URL")
    output: Path = Field(Path("report.html"), description="HTML file to write")
    truth: str | None = Field(None, description="directory of PNG label maps to show beside")
    version: int | None = Field(None, ge=1, description="dataset version; the newest if absent")
    max_images: int = Field(
        240,
        ge=1,
        description="images on the page: a quarter the worst, a quarter the least certain, the "
        "others spread evenly through the dataset",
    )
    max_page_mb: float = Field(
        20.0, gt=0, description="no further images once the page is of this size, in MB"
    )


class DemoConfig(Config):
    """Make synthetic scenes, annotate them with the embedded models, evaluate and report."""

    output: Path = Field(Path("demo"), description="directory for scenes, dataset and report")
    images: int = Field(200, ge=1, description="number of scenes")
    seed: int = Field(0, ge=0, description="which scenes")


class WeightsConvertConfig(Config):
    """Write the models of a checkpoint of the paper's authors as directories that Segmill loads."""

    checkpoint: Path = Field(description="the authors' checkpoint: .pth or .safetensors")
    output: Path = Field(description="directory to write: proposer, clip, and learned prompts")
    clip_checkpoint: Path | None = Field(
        None, description="checkpoint to take the CLIP from, where the first one has none"
    )
    vocabulary: Path | None = Field(
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

    weights: Path = Field(description="checkpoint, learned prompt, or a directory of a model")


class DatasetsPrepareConfig(Config):
    """Turn an official download into images, maps of class indices, and a vocabulary."""

    name: str = Field(description="data set; see `segmill datasets list`")
    root: Path = Field(description="directory of data sets: downloads are in it, ROOT/NAME is made")
    source: Path | None = Field(None, description="where the download was unpacked; ROOT if absent")
    output: Path | None = Field(None, description="directory to write; ROOT/NAME if absent")
    vocabulary: Path | None = Field(
        None, description="class names: of a folder or Hugging Face data set, or for ade20k-847"
    )
    label_values: tuple[int, ...] = Field(
        (),
        description="what masks of a folder or Hugging Face data set hold for each class in order; "
        "0,1,2,... if absent",
    )
    ignore_values: tuple[int, ...] = Field(
        (255,), description="what such masks hold for pixels of no class"
    )
    image_column: str = Field("image", description="column of the images (Hugging Face)")
    mask_column: str | None = Field(
        None, description="column of the masks (Hugging Face); the other one of images if absent"
    )
    image_files: Literal["link", "copy"] = Field(
        "link", description="hard links to the download's images where the disk allows, or copies"
    )
    partial: bool = Field(
        False, description="accept other numbers of images than the official ones: a part"
    )
    max_bad_fraction: float = Field(
        0.0, ge=0, le=1, description="stop when more images or masks are broken or do not fit"
    )
    workers: int | None = Field(None, ge=1, description="processes; one per core if absent")
