"""Which models, how they are tuned, how they answer. Importing this loads neither torch nor transformers.

::

    models:
      blip: {kind: blip, weights: Salesforce/blip-vqa-base, lora: {r: 16, alpha: 32}}
    train: {epochs: 3, learning_rate: 5.0e-5, strategy: ddp}
    evaluate: {split: test, decoding: greedy}
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", frozen=True)
TINY = "tiny"


class LoraSettings(BaseModel):
    """Low-rank adaptation (Hu et al. 2021) through peft; the defaults are the published report's."""

    model_config = _STRICT

    r: int = Field(default=16, ge=1, le=1024)
    """Rank."""

    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: list[str] | None = None
    """Names of the linear layers that get an adapter; without it the model's own: query and value for BLIP."""

    use_rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski 2023)."""

    use_dora: bool = False
    """Weight-decomposed adaptation (Liu et al. 2024)."""


class ModelSettings(BaseModel):
    """One model to compare and to tune."""

    model_config = _STRICT

    kind: str = "blip"
    """A file of vqa/models/: blip, vilt."""

    weights: str = "Salesforce/blip-vqa-base"
    """A name on the hub, a folder, or ``tiny``: a model small enough for tests, made by the run itself."""

    lora: LoraSettings = LoraSettings()
    batch_size: int = Field(default=4, ge=1)
    """Questions in one step on one device."""

    gradient_accumulation: int = Field(default=4, ge=1)
    """Steps whose gradients are summed before the weights change."""

    tiny_epochs: int = Field(default=10, ge=1)
    """``weights: tiny`` only: passes over one half of the training questions that make the base."""

    question_prefix: Literal["cls", "enc"] = "cls"
    """BLIP only: the question's first token. The original BLIP sets [ENC], transformers keeps [CLS]."""


class TrainSettings(BaseModel):
    """How adapters are trained; the defaults are the published report's."""

    model_config = _STRICT

    epochs: float = Field(default=3.0, gt=0)
    learning_rate: float = Field(default=5e-5, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_share: float = Field(default=0.0, ge=0, lt=1)
    """Part of all steps in which the learning rate rises from 0."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: bf16 on GPUs that have it (Ampere on), fp16 on others (a T4), fp32 on CPU. Weights that train stay fp32 under ddp;
    DeepSpeed keeps its fp32 copies to itself, so that under ZeRO the adapter is saved in half precision."""

    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """How several processes share the work: plain data parallel, or DeepSpeed ZeRO with vqa/training/deepspeed/<strategy>.json."""

    eval_steps: int = Field(default=500, ge=1)
    """Steps between two validations (and checkpoints)."""

    validation_questions: int = Field(default=200, ge=1)
    """Size of the fixed sample that is answered each time."""

    patience: int = Field(default=0, ge=0)
    """Stop after so many validations without a better exact match; 0: never."""

    keep_checkpoints: int = Field(default=2, ge=1)
    logging_steps: int = Field(default=10, ge=1)
    seed: int = Field(default=42, ge=0)
    workers: int = Field(default=0, ge=0)
    """Processes that decode images; 0: the training process itself."""


class EvaluateSettings(BaseModel):
    """Which questions are answered, and how."""

    model_config = _STRICT

    split: Literal["train", "val", "test"] = "test"
    shards: int = Field(default=1, ge=1, le=100_000)
    """Tasks that the work of each model is divided over."""

    batch_size: int = Field(default=32, ge=1)
    """Questions answered at once (whole images, so a few more or less)."""

    decoding: Literal["greedy", "beam", "ranking"] = "greedy"
    """greedy and beam write an answer; ranking chooses the likeliest answer of the training split, as BLIP's authors do."""

    beams: int = Field(default=3, ge=2, le=20)
    shortlist: int = Field(default=128, ge=1)
    """ranking: answers kept by their first token, before the likelihood decides (128 in BLIP's code)."""

    max_new_tokens: int = Field(default=10, ge=1, le=50)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    compile: bool = False
    """Compile the network with torch.compile. It needs a C++ compiler and up to half a minute at each start of a task, so it
    is for long ones; on two CPU cores it gains a twentieth (``python -m benchmarks.answering`` measures it where you are)."""

    bertscore_model: str | None = "microsoft/deberta-xlarge-mnli"
    """Hub name, folder, ``package:NAME`` for weights in an installed package, or null for none."""

    bertscore_layer: int | None = None
    """Layer whose states are compared; None: the one that bert-score recommends for the model."""

    def answer_fields(self) -> tuple[str, ...]:
        """The settings that decide which answer comes out."""
        return ("decoding", "beams", "shortlist", "max_new_tokens", "precision")
