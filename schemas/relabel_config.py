"""The settings of `segmill relabel`: what of a version is to be another."""

from typing import Literal

from pydantic import Field

from schemas.config import Config, LocalPath, LockTtl, ObjectStoreMb, PlanMemoryMb


class RelabelConfig(Config):
    """Label a dataset again from its kept embeddings: no image is read and no GPU is needed.

    What is not given stays as it is in the newest version.
    """

    dataset: str = Field(description="dataset directory or URL, annotated with --keep-embeddings")
    vocabulary: LocalPath | None = Field(None, description="YAML or text file of class names")
    prompts: str | None = Field(
        None,
        description="single, vild, imagenet, a template with {}, a text file of templates, or a "
        ".safetensors file of a learned prompt",
    )
    region_prompts: str | None = Field(
        None, description="prompts of the region classifier, where not those of the query head"
    )
    ensemble_weight: float | None = Field(
        None, ge=0, le=1, description="exponent of the query score for seen classes; 0: CLIP alone"
    )
    invalid_proposals: Literal["boosted", "dropped"] | None = Field(
        None, description="proposals without a pixel above the threshold: CLIP score 1, or left out"
    )
    min_score: float | None = Field(
        None, ge=0, le=1, description="pixels scored below this are left without a label"
    )
    logit_scale: Literal["paper", "model"] | None = Field(
        None, description="what multiplies CLIP's cosines: the paper's 100, or CLIP's own scale"
    )
    address: str = Field("local", description="Ray cluster to join, or `local` for this machine")
    object_store_mb: ObjectStoreMb = None
    lock_ttl_s: LockTtl = 60.0
    plan_memory_mb: PlanMemoryMb = 1024
