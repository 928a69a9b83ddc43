"""LoRA on a model, and how many parameters that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from data_prep.outcomes import UserError
from vqa.models.base import Model
from vqa.settings import LoraSettings

WEIGHTS = "adapter_model.safetensors"  # peft's name


def apply_lora_to_model(model: Model, settings: LoraSettings) -> Model:
    """Wrap a model's network in peft, so that only adapters (and what the model trains whole) have gradients.

    ``task_type`` stays unset: with any, peft calls the network in a way that BLIP's does not take.

    Raises:
        UserError: no layer has one of the names in ``lora.targets``.
    """
    targets = list(settings.targets or model.lora_targets)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
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
            f"lora.targets {targets} match no layer of this model. Its linear layers: {', '.join(linear)}."
        ) from error
    return model


def load_adapter(model: Model, folder: Path, name: str = "default") -> Model:
    """Put a trained adapter on a model, beside others that it may have under other names.

    Raises:
        UserError: the folder holds no adapter, or one for another base or shape.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds no adapter (no adapter_config.json). Train one, or name its folder.")
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds no adapter's weights (no {WEIGHTS}): a copy of it may not be complete. An adapter_model.bin is not "
            f"read, since reading it could run any code; whoever made it can save it again as {WEIGHTS}."
        )
    try:
        if isinstance(model.net, PeftModel):
            model.net.load_adapter(str(folder), adapter_name=name)
        else:
            model.net = PeftModel.from_pretrained(model.net, str(folder), adapter_name=name)
    except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        words = " ".join(str(error).split())[:300]
        raise UserError(f"The adapter in {folder} does not fit this {model.kind} model: {words}") from error
    if missing := _not_loaded(model, folder, name):
        raise UserError(
            f"The adapter in {folder} was made for another base than this {model.kind} model: {missing}. Name the base that "
            f"its adapter_config.json gives as base_model_name_or_path."
        )
    model.net.eval()
    model.load_extra(folder)
    return model


def _not_loaded(model: Model, folder: Path, name: str) -> str:
    """What of an adapter's file and of the network's adapter layers does not match; "" where all does."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        saved = set(file.keys())
    expected = set(get_peft_model_state_dict(model.net, adapter_name=name))
    if saved == expected:
        return ""
    lacking, surplus = sorted(expected - saved), sorted(saved - expected)
    parts = []
    if lacking:
        parts.append(f"{len(lacking)} of {len(expected)} layers are not in it (such as {lacking[0]})")
    if surplus:
        parts.append(f"{len(surplus)} of its {len(saved)} weights have no place (such as {surplus[0]})")
    return "; ".join(parts)


def parameter_table(model: Model) -> dict[str, Any]:
    """Measured parameter counts, with the published report's beside them.

    Weights that two layers share count once in ``total``.
    """
    seen: dict[int, int] = {}
    trainable = adapters = 0
    for name, parameter in model.net.named_parameters():
        if "original_module." in name:  # peft's copy of a layer that is trained whole, for when the adapter is off
            continue
        count = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 keeps a part only
        seen[id(parameter)] = count
        if parameter.requires_grad:
            trainable += count
            adapters += count if "lora_" in name else 0
    total = sum(seen.values())
    return {
        "total": total,
        "trainable": trainable,
        "lora": adapters,
        "percent": round(100 * trainable / total, 4),
        "published": dict(model.published),
    }
