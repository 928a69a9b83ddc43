"""LoRA (Hu et al. 2021): where it is applied, how an adapter is loaded, and how many parameters it trains.

A linear layer W gets two small matrices: y = W x + (alpha / r) B A x, with A (r, in) and B (out, r). Only A and B are trained; B
starts at zero, so that training starts from the base model's answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from data_prep.files import read_json, write_json
from data_prep.outcomes import UserError
from vqa.models.base import Model
from vqa.settings import LoraSettings

WEIGHTS = "adapter_model.safetensors"  # peft's name


def apply_lora_to_model(model: Model, settings: LoraSettings) -> Model:
    """Wrap a model's network in peft, so that only adapters and ``modules_to_save`` have gradients.

    Raises:
        UserError: no layer has a name in ``lora.targets``.
    """
    chosen = settings.targets or model.lora_targets
    targets = chosen if isinstance(chosen, str) else list(chosen)
    # task_type stays unset: with any, peft passes arguments to the network that BLIP's forward does not take.
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else model.lora_layers(targets),
        exclude_modules=settings.exclude,
        modules_to_save=list(model.modules_to_save) or None,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        bias="none",
    )
    try:
        model.net = get_peft_model(model.net, config)  # type: ignore[arg-type]
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, m in model.net.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(
            f"lora.targets {targets}{f' without {settings.exclude}' if settings.exclude else ''} match no layer of this model. Choose among its linear layers: {', '.join(linear)}."
        ) from error
    return model


def name_published_class(model: Model, folder: Path) -> None:
    """Have a saved adapter name transformers' own class of its base, so that ``AutoPeftModel`` loads it without this project."""
    kinds = type(model.net.get_base_model()).__mro__
    published = next(kind for kind in kinds if kind.__module__.startswith("transformers."))
    file = folder / "adapter_config.json"
    mapping = {"base_model_class": published.__name__, "parent_library": published.__module__}
    write_json(file, (read_json(file) or {}) | {"auto_mapping": mapping})


def load_adapter(model: Model, folder: Path, name: str = "default") -> Model:
    """Load a trained adapter into a model, in addition to those loaded under other names.

    Raises:
        UserError: the folder holds no adapter, or one for another base or shape.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds no adapter (no adapter_config.json). Give the folder that training wrote.")
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds no adapter weights (no {WEIGHTS}): the copy may be incomplete. An adapter_model.bin is not read, "
            f"since unpickling it could run any code; have its author save it as {WEIGHTS}."
        )
    try:
        if isinstance(model.net, PeftModel):
            model.net.load_adapter(str(folder), adapter_name=name)
        else:
            model.net = PeftModel.from_pretrained(model.net, str(folder), adapter_name=name)
    except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        words = " ".join(str(error).split())[:300]
        raise UserError(f"The adapter in {folder} does not fit this {model.kind} model: {words}") from error
    # peft ignores keys that it cannot place, and would answer with the base alone.
    if mismatch := _key_mismatch(model, folder, name):
        raise UserError(
            f"The adapter in {folder} was trained on another base than this {model.kind} model: {mismatch}. Use the base that "
            f"its adapter_config.json names as base_model_name_or_path."
        )
    model.net.eval()
    model.load_extra(folder)
    return model


def _key_mismatch(model: Model, folder: Path, name: str) -> str:
    """How the keys of an adapter's file differ from the network's adapter layers; "" if they are the same."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        saved = set(file.keys())
    expected = set(get_peft_model_state_dict(model.net, adapter_name=name))
    if saved == expected:
        return ""
    lacking, surplus = sorted(expected - saved), sorted(saved - expected)
    parts = []
    if lacking:
        parts.append(f"it lacks {len(lacking)} of {len(expected)} layers (such as {lacking[0]})")
    if surplus:
        parts.append(f"{len(surplus)} of its {len(saved)} weights match no layer (such as {surplus[0]})")
    return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class ParameterTable:
    """Parameter counts, written to ``parameters.json``."""

    total: int  # weights that two layers share (BLIP's embedding and output layer) count once
    trainable: int
    lora: int  # those of the trainable ones that belong to LoRA; the others are modules_to_save
    percent: float  # trainable of total
    published: dict[str, str]  # the report's figures, and why they differ


def parameter_table(model: Model) -> ParameterTable:
    """Count the parameters of a model with LoRA."""
    seen: dict[int, int] = {}
    trainable = lora = 0
    for name, parameter in model.net.named_parameters():
        if "original_module." in name:  # peft's untrained copy of a module to save, used while the adapter is off
            continue
        count = getattr(parameter, "ds_numel", parameter.numel())  # under ZeRO-3 numel() is this rank's partition
        seen[id(parameter)] = count
        if parameter.requires_grad:
            trainable += count
            lora += count if "lora_" in name else 0
    total = sum(seen.values())
    return ParameterTable(total, trainable, lora, round(100 * trainable / total, 4), model.published)
