"""``launch.py score`` and ``compare``: judge answers, anybody's or those of runs."""

from __future__ import annotations

from pathlib import Path

import orjson
from rich.console import Console

from data_prep.outcomes import UserError, unknown_name
from data_prep.records import Prediction
from jobs.options import ScoreRequest
from jobs.run.layout import VARIANTS
from jobs.run.run import load_run
from jobs.stages.evaluate import read_predictions


def score(request: ScoreRequest, out: Console) -> None:
    """Print every metric of a table of answers.

    Raises:
        UserError: unreadable file, wrong column, no rows.
    """
    from vqa.evaluation import score as scoring
    from vqa.evaluation.bertscore import BertSettings

    bert = BertSettings(request.bertscore) if request.bertscore else None
    result = scoring.score_table(request.table, request.truth, request.prediction, request.group_by, bert)
    _show(result, scoring.render(result), request.json, out)


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


def _answers(path: Path, model: str | None, variant: str) -> list[Prediction]:
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


def _show(result: object, text: str, as_json: bool, out: Console) -> None:
    if as_json:
        print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    else:
        out.print(text, markup=False)
