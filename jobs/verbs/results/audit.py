"""``launch.py audit``: a page on which a person judges a sample of test questions, and what the verdicts say.

::

    launch.py audit runs/abo --questions 200             # writes runs/abo/audit/<sample>.html; judge there, save the file
    launch.py audit runs/abo --verdicts ada.json bob.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.files import read_jsonl, write_atomic, write_json
from data_prep.outcomes import UserError
from data_prep.records import Example
from jobs.config import Config
from jobs.options import AuditRequest
from jobs.run.layout import RunDir
from jobs.run.run import load_run
from jobs.stages.audit import audit_result_of, draw_sample, opinions_shown
from jobs.verbs.launch import sole_writer
from vqa.audit.verdicts import VERDICTS, read_verdicts

_CARD_TITLE = "## Checked by people"

if TYPE_CHECKING:
    from vqa.audit.results import AuditResult
    from vqa.evaluation.statistics import Interval


def audit(request: AuditRequest, console: Console) -> None:
    """Write the page, or read verdicts.

    Raises:
        UserError: no test split yet, a file is no file of verdicts, or its sample is not of this split.
    """
    run, config = load_run(request.run_dir)
    if request.verdicts is not None:
        with sole_writer(run):
            read(run, config, [request.verdicts, *(request.more or ())], console, as_json=request.json)
    elif request.more:
        raise UserError(f"{request.more[0]}: to read files of verdicts, write --verdicts before them.")
    else:
        write(run, config, request.questions, request.seed, console)


def write(run: RunDir, config: Config, questions: int, seed: int, console: Console) -> None:
    """Draw the sample and write its page."""
    from vqa.audit.page import sample_digest, write_page

    test = _test(run, config)
    sample = draw_sample(run, config, test, questions, seed)
    known = {e.id: e for e in test}
    drawn = [known[question] for question in sample.ids]
    digest = sample_digest(drawn, seed)
    page = run.audit_page(digest)
    write_json(run.audit_sample(digest), sample)
    lacking = write_page(
        page, digest, drawn, opinions_shown(run, config, drawn), config.data.image_root, config.report.title
    )
    console.print(f"{len(drawn):,} of {len(test):,} test questions, in {len(sample.strata)} strata.")
    if lacking:
        console.print(
            f"{lacking:,} of them have no image: {config.data.image_root} lacks it.", style="yellow", markup=False
        )
    console.print(
        f"Open {page} in a browser, judge, and save the file. Then: launch.py audit {run.path} --verdicts FILE.json",
        markup=False,
    )


def read(run: RunDir, config: Config, files: Sequence[Path], console: Console, *, as_json: bool) -> None:
    """Check the files, keep them as the run's verdicts, and print what they say; the report shows it from now on."""
    people = read_verdicts(files)
    if not run.audit_sample(people.sample).is_file():
        raise UserError(f"{files[0]} is about sample {people.sample}, which was not drawn in {run.path}.")
    result = audit_result_of(run, config, people)
    write_json(run.people, people)
    _write_card(run.dataset / "README.md", result)
    if as_json:
        print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
        return
    _show(result, console)
    console.print(f"launch.py report {escape(str(run.path))} shows it, too.")


def _write_card(card: Path, result: AuditResult) -> None:
    """Put what people say at the end of the dataset's card, in place of what was there of it."""
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8").partition(f"\n{_CARD_TITLE}\n")[0].rstrip("\n")
    who = ", ".join(f"{person} {count:,}" for person, count in result.people.items())
    lines = [
        f"{result.judged:,} of {result.drawn:,} drawn test questions were judged ({who}). Shares of the whole test split, in percent,",
        "weighted by stratum and clustered by product, with 95 % intervals:",
        "",
        "| generated answers | share |",
        "| --- | --- |",
        f"| not right | {_percent(result.error)} |",
        *(f"| {VERDICTS[kind].lower()} | {_percent(share)} |" for kind, share in result.verdicts.items()),
        f"| with a right answer, the generated one or another | {_percent(result.answerable)} |",
        "",
        *(f"- Cohen's kappa of {' and '.join(pair.people)}: {_kappa(pair.kappa)}." for pair in result.agreement),
    ]
    write_atomic(card, "\n".join([text, "", _CARD_TITLE, "", *lines]).rstrip("\n").encode() + b"\n")


def _kappa(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _test(run: RunDir, config: Config) -> list[Example]:
    split = run.split(config.evaluate.split)
    if not split.is_file():
        raise UserError(f"There are no test questions yet: {split} is missing. Run stage curate first.")
    return list(read_jsonl(split, Example))


def _show(result: AuditResult, console: Console) -> None:
    who = ", ".join(f"{person} {count:,}" for person, count in result.people.items())
    console.print(f"{result.judged:,} of {result.drawn:,} questions judged ({who}).", markup=False)
    console.print(f"Label error: {_percent(result.error)} of the generated answers are not right.", markup=False)
    for kind, share in result.verdicts.items():
        console.print(f"  {kind}: {_percent(share)}", markup=False)
    console.print(
        f"Have a right answer: {_percent(result.answerable)}. No model can score higher against people.", markup=False
    )
    table = Table("by", "group", "judged", "label error %")
    for name, groups in result.by.items():
        for group in groups:
            table.add_row(escape(name), escape(group.group), f"{group.judged:,}", _percent(group.error))
    console.print(table)
    for pair in result.agreement:
        console.print(
            f"{pair.people[0]} and {pair.people[1]}: kappa {_kappa(pair.kappa)}; the same verdict on {pair.same:,} of {pair.questions:,}.",
            markup=False,
        )
    if not result.models:
        console.print("No model has answered yet.")
        return
    table = Table("model", "against people %", "from the sample alone %", "against generated answers %")
    for one in result.models:
        table.add_row(f"{one.model} {one.variant}", *map(_percent, (one.people, one.people_alone, one.generated)))
    console.print(table)


def _percent(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{100 * found.mean:.1f} (no interval)"
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
