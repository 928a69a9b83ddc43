"""``launch.py predict`` and ``merge``: what a person does with an adapter."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from data_prep.outcomes import UserError
from jobs.options import PredictRequest
from vqa.inference.source import Source, find_adapter, find_model


def predict(request: PredictRequest, out: Console, err: Console) -> int:
    """Answer a table, or some questions about some images; the exit code: 1 if an image could not be used.

    Raises:
        UserError: options that do not go together, files that are not there.
    """
    source = _named(request)
    if request.image or request.question:
        return _ask(request, source, out, err)
    if request.csv_path is None or request.image_dir is None:
        raise UserError("Give --csv_path together with --image_dir, or --image together with --question.")
    if request.output.exists() and not request.overwrite:
        raise UserError(f"{request.output} is there already: name another --output, or add --overwrite.")
    from vqa.inference import predict as predicting

    found = predicting.predict(
        source,
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


def _named(request: PredictRequest) -> Source:
    if request.adapter is not None:
        return find_adapter(request.adapter, model=request.model, weights=request.weights)
    return find_model(None, model=request.model, weights=request.weights)


def _ask(request: PredictRequest, source: Source, out: Console, err: Console) -> int:
    """Ask every question about every image; print an answer, or a line for each."""
    from vqa.errors import ImageError
    from vqa.inference.api import VQAModel

    images, questions = request.image or [], request.question or []
    if not images or not questions or request.csv_path is not None:
        raise UserError("Give --image together with --question, or --csv_path together with --image_dir.")
    if missing := [str(image) for image in images if not image.is_file()]:
        raise UserError(f"There is no image {', '.join(missing)}.")
    model, code = VQAModel(source), 0
    for image in images:
        try:
            answers = model.ask(image, questions)
        except ImageError as error:
            err.print(f"warning: {error}", markup=False, style="yellow")
            code = 1
            continue
        for question, answer in zip(questions, answers, strict=True):
            asked = "" if len(images) == len(questions) == 1 else f"{image}  {question}  "
            out.print(f"{asked}{answer.text} ({answer.confidence:.2f})", markup=False)
    return code


def merge(adapter: Path, model: str | None, weights: str | None, output: Path, out: Console) -> None:
    """Write base and adapter as one model.

    Raises:
        UserError: base or adapter are missing or do not fit, or the folder is there already.
    """
    if output.exists():
        raise UserError(f"{output} is there already: name a new folder.")
    source = find_adapter(adapter, model=model, weights=weights)
    assert source.adapter is not None
    from vqa.inference.saved_model import merge_adapter

    merge_adapter(source.model, source.adapter, output)
    out.print(f"The merged model is in {output}", markup=False)
