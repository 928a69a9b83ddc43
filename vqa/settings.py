"""Settings of models, training and evaluation. Importing this loads neither torch nor transformers.

::

    models:
      blip: {kind: blip, weights: Salesforce/blip-vqa-base, lora: {r: 16, alpha: 32}}
    train: {epochs: 3, learning_rate: 5.0e-5, strategy: ddp}
    evaluate: {split: test, decoding: greedy}
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", frozen=True)


AGREED = "agreed"


def is_hub_name(weights: str) -> bool:
    """Whether weights are named as on the hub (``model`` or ``owner/model``) and not by a path."""
    return not weights.startswith((".", "/", "~")) and weights.count("/") <= 1


class LoraSettings(BaseModel):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685); the defaults are the published report's."""

    model_config = _STRICT

    r: int = Field(default=16, ge=1, le=1024)
    """Rank."""

    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: list[str] | str | None = None
    """Linear layers that get an adapter: a list of names, a regular expression for whole paths (``text_encoder.*(query|value)``),
    or all-linear; null: the model's default, for BLIP query and value."""

    exclude: list[str] | str | None = None
    """Layers of ``targets`` that get none: a list of names, or a regular expression for whole paths."""

    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023, arXiv:2312.03732)."""

    use_dora: bool = False
    """Weight-decomposed adaptation (Liu et al. 2024, arXiv:2402.09353)."""


class FeatureSettings(BaseModel):
    """What a frozen vision tower makes of an image is kept on disk: no later epoch, validation or run computes it again."""

    model_config = _STRICT

    folder: str | None = None
    """Where; null: in the run. Several runs may share one: what depends on weights, size and precision is kept apart."""

    max_gb: float = Field(default=60.0, ge=0)
    """The most that a tower's features may take, in GB; 0: keep none. 30,000 images of BLIP at 384 pixels take 53 GB in fp32 and
    27 GB in half precision."""


class ModelSettings(BaseModel):
    """A model to fine-tune and to compare."""

    model_config = _STRICT

    kind: str = "blip"
    """A model of vqa/models/: blip, vilt, or vlm for any image-text-to-text model of transformers."""

    weights: str = "Salesforce/blip-vqa-base"
    """A name on the hub, or a folder."""

    lora: LoraSettings = LoraSettings()
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Questions in a batch on one device; auto: ``effective_batch``, at once. What does not fit in a GPU's memory is divided."""

    gradient_accumulation: int = Field(default=1, ge=1)
    """Batches per optimizer step, where ``batch_size`` is a number."""

    effective_batch: int = Field(default=16, ge=1)
    """Questions per optimizer step on one device, where ``batch_size`` is auto."""

    @property
    def batches(self) -> tuple[int, int]:
        """Questions in a batch, and batches per optimizer step."""
        if self.batch_size == "auto":
            return self.effective_batch, 1
        return self.batch_size, self.gradient_accumulation

    keep: Literal["all", "agreed"] | None = None
    """As ``train.keep``, for this model; null: what that says. Two models that differ in it alone are the ablation."""

    instruction: str = "Answer in one word."
    """vlm only: what follows each question in the prompt."""

    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """vlm only: of the frozen weights."""

    quantization: Literal["4bit", "8bit"] | None = None
    """vlm only: frozen weights by bitsandbytes, on a GPU."""

    question_prefix: Literal["cls", "enc"] = "cls"
    """BLIP only: the question's first token. The original BLIP uses [ENC], transformers [CLS]."""

    features: FeatureSettings | None = Field(default=None, exclude=True)
    """As the section ``features``, for this model; null: what that says. They change no result."""


class TrainSettings(BaseModel):
    """How adapters are trained; the defaults are the published report's."""

    model_config = _STRICT

    keep: Literal["all", "agreed"] = "all"
    """Training rows: all, or only those whose answer the second opinion agrees with (needs ``verify`` with ``split: all``).
    Removing rows costs training data, so it is not done unasked; jobs/configs/ablation.yaml compares both."""

    epochs: float = Field(default=3.0, gt=0)
    learning_rate: float = Field(default=5e-5, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly from 0."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: bf16 on GPUs that support it (Ampere or newer), fp16 on older ones such as a T4, fp32 on a CPU. Under ddp trained
    weights stay fp32; under ZeRO, DeepSpeed keeps the fp32 copies to itself and the adapter is saved in half precision."""

    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """Several GPUs: data parallel, or DeepSpeed ZeRO with vqa/training/deepspeed/<strategy>.json."""

    eval_steps: int = Field(default=500, ge=1)
    """Optimizer steps between validations, and between checkpoints."""

    validation_images: int = Field(default=200, ge=1)
    """Images of the fixed sample of the validation split that each validation answers, with all their questions."""

    patience: int = Field(default=0, ge=0)
    """Stop after this many validations without a better exact match; 0: never."""

    keep_checkpoints: int = Field(default=2, ge=1)
    logging_steps: int = Field(default=10, ge=1)
    seed: int = Field(default=42, ge=0)
    workers: int = Field(default=0, ge=0)
    """Processes that decode images; 0: the training process decodes."""


class EvaluateSettings(BaseModel):
    """Which questions to answer, and how."""

    model_config = _STRICT

    split: Literal["train", "val", "test"] = "test"
    shards: int = Field(default=1, ge=1, le=100_000)
    """Number of parts that each model's questions are divided into; a task answers one part."""

    batch_size: int = Field(default=32, ge=1)
    """Questions answered at once; approximate, since batches hold whole images."""

    decoding: Literal["greedy", "beam", "ranking"] = "greedy"
    """greedy and beam generate an answer; ranking picks the most likely answer of the training split, as BLIP's authors do."""

    beams: int = Field(default=3, ge=2, le=20)
    shortlist: int = Field(default=128, ge=1)
    """ranking: candidates kept by the likelihood of their first token before whole answers are compared (BLIP's code: 128)."""

    max_new_tokens: int = Field(default=10, ge=1, le=50)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    compile: bool = False
    """Use torch.compile. It needs a C++ compiler and up to 30 s at the start of each task, so it suits long tasks. On two CPU
    cores it saves 5 %; ``python -m benchmarks.answering`` measures it on your machine."""

    bertscore_model: str | None = "microsoft/deberta-xlarge-mnli"
    """Hub name, folder, or ``package:NAME`` for weights in an installed package; null: no BERTScore."""

    bertscore_layer: int | None = None
    """Layer whose states are compared; null: the one that bert-score recommends for the model."""

    control: int = Field(default=2000, ge=0)
    """Questions that the fine-tuned model answers again with a gray image and with another product's, to see whether it looks;
    0: none, and then the report cannot say that a model has learned."""

    def answer_fields(self) -> tuple[str, ...]:
        """The settings that an answer depends on."""
        return ("decoding", "beams", "shortlist", "max_new_tokens", "precision")
