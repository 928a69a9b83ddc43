"""``launch.py predict`` and ``merge``: what a person does with an adapter."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from data_prep.outcomes import UserError, unknown_name
from jobs.options import PredictRequest
from vqa.settings import ModelSettings

PUBLISHED_WEIGHTS = {"blip": "Salesforce/blip-vqa-base", "vilt": "dandelin/vilt-b32-finetuned-vqa"}


def predict(request: PredictRequest, out: Console, err: Console) -> int:
    """Answer a table or one question; the exit code: 1 if an image could not be used.

    Raises:
        UserError: options that do not go together, files that are not there.
    """
    from vqa.inference import predict as predicting

    model = _named_model(request.model, request.weights, request.adapter)
    if request.image is not None or request.question is not None:
        if request.image is None or request.question is None or request.csv_path is not None:
            raise UserError("Give --image together with --question, or --csv_path together with --image_dir.")
        found = predicting.predict_one(model, request.adapter, request.image, request.question)
        for problem in found.problems:
            err.print(f"warning: {problem}", markup=False, style="yellow")
        out.print(found.answers[0], markup=False)
    else:
        if request.csv_path is None or request.image_dir is None:
            raise UserError("Give --csv_path together with --image_dir, or --image together with --question.")
        found = predicting.predict(
            model,
            request.adapter,
            request.image_dir,
            request.csv_path,
            request.output,
            warn=lambda words: err.print(f"warning: {words}", markup=False, style="yellow"),
        )
        out.print(f"{len(found.answers):,} rows in {request.output}", markup=False)
        if found.located:
            out.print(found.located, markup=False)
    if found.problems:
        err.print(f"{len(found.problems):,} of them without an answer: their images could not be used.", style="red")
    return found.exit_code


def _named_model(kind: str, weights: str | None, adapter: Path | None) -> ModelSettings:
    """The model that the options name: without weights the adapter's own base, without an adapter the published ones."""
    from vqa.inference.predict import base_of

    if kind not in PUBLISHED_WEIGHTS:
        raise UserError(f"--model: {unknown_name(kind, list(PUBLISHED_WEIGHTS), 'model')}")
    return ModelSettings(kind=kind, weights=weights or base_of(adapter) or PUBLISHED_WEIGHTS[kind])


def merge(kind: str, weights: str | None, adapter: Path, output: Path, out: Console) -> None:
    """Write base and adapter as one model.

    Raises:
        UserError: base or adapter are missing or do not fit, or the folder is there already.
    """
    from vqa.inference.saved_model import merge_adapter

    if output.exists():
        raise UserError(f"{output} is there already: name a new folder.")
    merge_adapter(_named_model(kind, weights, adapter), adapter, output)
    out.print(f"The merged model is in {output}", markup=False)
