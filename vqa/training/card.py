"""The README of a trained adapter: what somebody who finds it should know about it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqa.settings import ModelSettings, TrainSettings


def model_card(
    name: str,
    model: ModelSettings,
    settings: TrainSettings,
    *,
    parameters: Mapping[str, Any],
    best: Mapping[str, Any] | None,
    batch: str,
    data: Path,
    added_answers: int,
) -> str:
    """The card, in the hub's format.

    Args:
        name: of the model in this project.
        model: base and LoRA.
        settings: hyper-parameters.
        parameters: counts, of `vqa.models.lora.parameter_table`.
        best: step and exact match of the validation that chose this adapter; None without a validation split.
        batch: how the effective batch was made, in words.
        data: the curated splits, whose digests say what it was trained on.
        added_answers: answers that the base did not know and the adapter's own output layer does.
    """
    scored = (
        f"Exact match on {best['questions']} validation questions: {best['exact_match']:.3f} (step {best['step']}, the "
        f"best of this training)."
        if best
        else "It was not validated: the validation split is empty. This is the last step's adapter."
    )
    lora = model.lora
    variants = [word for word, on in (("rsLoRA", lora.use_rslora), ("DoRA", lora.use_dora)) if on]
    kind = " with ".join(["LoRA", *variants])
    command = f"--model {model.kind} --weights {model.weights} --adapter this_folder"
    loading = f"Answer with `launch.py predict {command}`, or load it with `peft.PeftModel.from_pretrained(base, this_folder)`."
    if added_answers:
        loading = (
            f"It knows {added_answers:,} answers that its base does not (answers.json), so its output layer has another shape than "
            f"the base's, which peft alone does not load. Answer with `launch.py predict {command}`, or make one model of both, "
            f"which transformers loads, with `launch.py merge {command} --output FOLDER`."
        )
    return f"""---
base_model: {model.weights}
library_name: peft
tags: [visual-question-answering, lora]
---
# {name}: LoRA adapter for one-word questions about products

{scored}

| | |
| --- | --- |
| base model | `{model.weights}` ({model.kind}) |
| {kind} | r {lora.r}, alpha {lora.alpha}, dropout {lora.dropout}, targets {lora.targets or "the default of the model"} |
| parameters | {parameters["trainable"]:,} of {parameters["total"]:,} trained ({parameters["percent"]} %) |
| training | {settings.epochs:g} epochs, batch {batch}, learning rate {settings.learning_rate:g} ({settings.schedule}), weight decay {settings.weight_decay:g}, seed {settings.seed} |
| data | train.jsonl sha256 `{_digest(data / "train.jsonl")}`, val.jsonl sha256 `{_digest(data / "val.jsonl")}` |

{loading}
"""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
