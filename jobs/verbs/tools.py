"""Verbs that need no run, or only read some: predict, score, compare, fetch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from rich.console import Console

from data_prep.outcomes import UserError, unknown_name
from data_prep.records import Prediction as AnsweredQuestion
from jobs.config import DEFAULT_CONFIG, load_config
from jobs.run.layout import VARIANTS
from jobs.run.run import load_run
from jobs.stages.evaluate import read_predictions
from vqa.settings import TINY, ModelSettings

PUBLISHED_WEIGHTS = {"blip": "Salesforce/blip-vqa-base", "vilt": "dandelin/vilt-b32-finetuned-vqa"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """The options of ``launch.py predict``, as typed."""

    model: str
    weights: str | None
    adapter: Path | None
    image_dir: Path | None
    csv_path: Path | None
    output: Path
    image: Path | None
    question: str | None


def predict(request: Prediction, out: Console, err: Console) -> int:
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


def score(
    table: Path, truth: str, prediction: str, cluster: str | None, bertscore: str | None, as_json: bool, out: Console
) -> None:
    """Print every metric of a table of answers.

    Raises:
        UserError: unreadable file, wrong column, no rows.
    """
    from vqa.evaluation import score as scoring
    from vqa.evaluation.metrics import MetricSettings

    settings = MetricSettings(bertscore_model=bertscore) if bertscore else None
    result = scoring.score_table(table, truth, prediction, cluster, settings)
    _show(result, scoring.render(result), as_json, out)


def compare(run_a: Path, run_b: Path, model: str | None, variant: str, as_json: bool, out: Console) -> None:
    """Print how two runs differ on the questions that they share.

    Raises:
        UserError: not a run, no such model, no shared questions.
    """
    from vqa.evaluation import compare as comparing

    if variant not in VARIANTS:
        raise UserError(f"--variant: {unknown_name(variant, VARIANTS, 'variant')}")
    before, after = (_answers(path, model, variant) for path in (run_a, run_b))
    result = comparing.compare(before, after, (str(run_a), str(run_b)))
    _show(result, comparing.render(result), as_json, out)


def _answers(path: Path, model: str | None, variant: str) -> list[AnsweredQuestion]:
    run, config = load_run(path)
    if model is None and len(config.models) > 1:
        raise UserError(f"{path} has several models: name one with --model ({', '.join(config.models)}).")
    name = model or next(iter(config.models))
    if name not in config.models:
        raise UserError(f"--model: {unknown_name(name, list(config.models), 'model')}")
    answers, _ = read_predictions(run, name, variant)
    if not answers:
        raise UserError(f"{path} has no answers of {name}-{variant} yet: run its stage evaluate first.")
    return answers


def _show(result: dict[str, object], text: str, as_json: bool, out: Console) -> None:
    if as_json:
        print(orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())
    else:
        out.print(text, markup=False)


def fetch(config: Path | None, overrides: Sequence[str], out: Console) -> None:
    """Download the weights of every model of a configuration into the cache.

    Raises:
        UserError: they cannot be had.
    """
    from huggingface_hub import snapshot_download

    from vqa.models.base import missing_weights

    for name, model in load_config(config or DEFAULT_CONFIG, overrides).models.items():
        if model.weights == TINY:
            out.print(f"{name}: tiny, made by the run itself")
            continue
        if Path(model.weights).is_dir():
            out.print(f"{name}: {model.weights} is a folder", markup=False)
            continue
        try:
            folder = snapshot_download(model.weights, allow_patterns=["*.json", "*.txt", "*.safetensors"])
            # Older models have their weights in torch's own format only.
            if not any(Path(folder).glob("*.safetensors")):
                folder = snapshot_download(model.weights, allow_patterns=["*.json", "*.txt", "pytorch_model*.bin"])
        except Exception as error:  # the hub's client has dozens of kinds, all with the same way out
            raise missing_weights(model.weights, error) from error
        out.print(f"{name}: {model.weights} is in {folder}", markup=False)
