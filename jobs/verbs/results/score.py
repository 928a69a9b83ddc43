"""``launch.py score`` and ``compare``: judge answers, anybody's or those of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from data_prep.files import file_digest, read_jsonl
from data_prep.outcomes import UserError, unknown_name
from data_prep.records import Answered, Example
from jobs.options import CompareRequest, ScoreRequest
from jobs.run.layout import VARIANTS
from jobs.run.run import load_run
from jobs.stages.evaluate import Evaluate

if TYPE_CHECKING:
    from vqa.evaluation.compare import Leaderboard, Standing
    from vqa.evaluation.entries import Entry
    from vqa.evaluation.statistics import Interval

NARROW = 76  # columns of a terminal below which intervals go on a line of their own


def score(request: ScoreRequest, out: Console) -> None:
    """Print every metric of a table of answers.

    Raises:
        UserError: unreadable file, wrong column, no rows.
    """
    from vqa.evaluation import score as scoring
    from vqa.evaluation.bertscore import BertSettings

    bert = BertSettings(request.bertscore) if request.bertscore else None
    result = scoring.score_table(request.table, request.truth, request.prediction, request.group_by, bert)
    if request.json:
        _print_json(result)
    else:
        out.print(scoring.render(result), markup=False)


def compare(request: CompareRequest, out: Console) -> None:
    """Print a leaderboard of runs and tables, as a table or JSON, and write it as a page.

    Raises:
        UserError: neither run nor table, no such model or column, no shared questions.
    """
    from vqa.evaluation.compare import compare as rank
    from vqa.report.leaderboard import write_page

    board = rank(list(_entries(request)), request.against, request.group_by)
    if request.output:
        write_page(board, request.output)
    if request.json:
        _print_json(board)
        return
    _show(board, out)
    if request.output:
        out.print(f"Page: {request.output}", markup=False)


def _entries(request: CompareRequest) -> Iterator[Entry]:
    """What each source has to compare, in order; a blind floor follows the first run of a dataset."""
    from vqa.evaluation.entries import Columns, short_names, table_entry

    if request.variant not in (None, *VARIANTS):
        raise UserError(f"--variant: {unknown_name(str(request.variant), VARIANTS, 'variant')}")
    columns = Columns(request.truth, request.prediction, request.group_by)
    names = short_names(request.sources)
    floors: set[str] = set()
    for name, path in zip(names, request.sources, strict=True):
        if path.is_dir():
            yield from _run_entries(name, path, request, floors)
        else:
            yield table_entry(name, path, columns)


def _run_entries(name: str, path: Path, request: CompareRequest, floors: set[str]) -> Iterator[Entry]:
    """The models of a run, and the guesser who knows its training questions. ``floors``: datasets that have one already."""
    from data_prep.curate.blind_floor import blind_answers
    from vqa.evaluation.entries import BLIND, Entry

    run, config = load_run(path)
    if request.model is not None and request.model not in config.models:
        raise UserError(f"--model: {unknown_name(request.model, list(config.models), 'model')}")
    split = run.split(config.evaluate.split)
    asked = {e.id: e for e in read_jsonl(split, Example)} if split.is_file() else {}
    found = False
    for model in [request.model] if request.model else config.models:
        for variant in [request.variant] if request.variant else VARIANTS:
            answers, failed = Evaluate(run, config, model).answers(variant) if asked else ([], {})
            # Tables name images by their files, not by ABO's ids.
            named = [
                dataclasses.replace(p, image_id=asked[p.id].image_path if p.id in asked else p.image_id)
                for p in answers
            ]
            if answers:
                found = True
                yield Entry(f"{name} {model}-{variant}", variant, named, failed=sum(failed.values()))
    if not found:
        which = "-".join(filter(None, (request.model, request.variant)))
        raise UserError(f"{path} has no answers{f' of {which}' if which else ''} yet: run its stage evaluate first.")
    train = run.split("train")
    if asked and train.is_file() and (dataset := file_digest(train) + file_digest(split)) not in floors:
        floors.add(dataset)
        tests = list(asked.values())
        guesses = blind_answers(list(read_jsonl(train, Example)), tests)
        yield Entry(
            f"{name} blind floor",
            BLIND,
            [
                Answered(e.id, e.item_id, e.image_path, e.question, e.answer, guess)
                for e, guess in zip(tests, guesses, strict=True)
            ],
        )


def _show(board: Leaderboard, out: Console) -> None:
    from vqa.evaluation.compare import headline, left_out, pair_facts

    by = f"{board.groups:,} groups by {board.grouped_by}" if board.grouped_by else "every question on its own"
    out.print(headline(board), style="bold", markup=False)
    out.print(
        f"{board.questions:,} shared questions, joined by {board.joined_by}; 95 % intervals over {by}; "
        f"p corrected over the entries (Holm).",
        markup=False,
    )
    out.print(_table(board, out.width < NARROW), soft_wrap=False)
    for line in pair_facts(board):
        out.print(line, markup=False)
    for one in board.standings:
        if one.collapsed:
            out.print(f"collapsed answers: {one.name}: {one.collapsed}", markup=False)
    if lines := left_out(board):
        out.print("left out:", markup=False)
    for line in lines:
        out.print(f"  {line}", markup=False)


def _table(board: Leaderboard, narrow: bool) -> Table:
    from vqa.evaluation.statistics import FEW

    between = "\n" if narrow else " "

    def percent(found: Interval, form: str) -> str:
        few = "" if found.clusters >= FEW else " (few)"
        limits = (
            "(no interval)"
            if found.low is None or found.high is None
            else (f"[{100 * found.low:{form}}, {100 * found.high:{form}}]{few}")
        )
        return f"{100 * found.mean:{form}}{between}{limits}"

    def difference(one: Standing) -> tuple[str, str]:
        if one.versus is None:
            return "reference", ""
        p = one.versus.p_corrected
        return percent(one.versus.paired.difference, "+.1f"), "<0.0001" if p < 0.0001 else f"{p:.4f}"

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("entry", overflow="fold", ratio=1)
    table.add_column("exact match %", justify="right", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    for one in board.standings:
        table.add_row(one.name, percent(one.exact_match, ".1f"), *difference(one))
    return table


def _print_json(result: object) -> None:
    print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
