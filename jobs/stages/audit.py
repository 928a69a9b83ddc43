"""The audit of a run: which questions people are asked about, what they are shown of others, what their verdicts say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.curate.blind_floor import blind_answers
from data_prep.files import read_json, read_jsonl
from data_prep.outcomes import UserError
from data_prep.records import Example, from_dict
from jobs.config import Config
from jobs.run.layout import VARIANTS, RunDir
from jobs.stages.evaluate import Evaluate
from jobs.stages.verify import UNKNOWN, opinions
from vqa.audit.page import Opinion, sample_digest
from vqa.audit.results import AuditResult, audit_result
from vqa.audit.sampling import Sample, Stratum, draw, stratum
from vqa.audit.verdicts import People, people_from

FIELDS = ("seen", "blind", "witness")


def draw_sample(run: RunDir, config: Config, test: Sequence[Example], count: int, seed: int) -> Sample:
    """A stratified sample of test questions for people to judge."""
    known = opinions(run, config, test)
    checked = any(one.seen != UNKNOWN.seen for one in known.values())
    strata = [(e.id, stratum(e.question_type, known[e.id].seen if checked else "")) for e in test]
    return draw(strata, count, seed)


def opinions_shown(run: RunDir, config: Config, drawn: Sequence[Example]) -> dict[str, list[Opinion]]:
    """What the audit page shows of others, after a verdict."""
    train = run.split("train")
    guesses = blind_answers(list(read_jsonl(train, Example)) if train.is_file() else [], drawn)
    known = opinions(run, config, drawn)
    shown = {}
    for e, guess in zip(drawn, guesses, strict=True):
        one = known[e.id]
        lines = [
            ("another model, with the image", one.seen_answer),
            ("a model without the image", one.blind_answer),
            ("a guesser without the image", guess),
            ("the listing", one.listing),
        ]
        shown[e.id] = [Opinion(who, says) for who, says in lines if says]
    return shown


def audit_result_of(run: RunDir, config: Config, people: People) -> AuditResult:
    """What people's verdicts say about the run as it is now.

    Raises:
        UserError: the test split is not the one that the sample was drawn from.
    """
    split = run.split(config.evaluate.split)
    test = list(read_jsonl(split, Example)) if split.is_file() else []
    sample = _read_sample(run.audit_sample(people.sample))
    known = {e.id: e for e in test}
    drawn = [known[question] for question in sample.ids if question in known]
    if known.keys() != sample.stratum_of.keys() or sample_digest(drawn, sample.seed) != people.sample:
        raise UserError(
            f"The test split has changed since sample {people.sample} was drawn, so its verdicts say nothing about it. Restore the "
            f"split, or draw again: launch.py audit {run.path}"
        )
    said = opinions(run, config, test)
    groups = {"question type": {e.id: e.question_type for e in test}}
    for field in FIELDS:
        values = {question: str(getattr(one, field)) for question, one in said.items()}
        if set(values.values()) - {getattr(UNKNOWN, field)}:
            groups[field] = values
    answers = {
        (model, variant): {p.id: p.answer for p in Evaluate(run, config, model).answers(variant)[0]}
        for model in config.models
        for variant in VARIANTS
    }
    return audit_result(sample, people, test, groups, answers)


def people_say(run: RunDir, config: Config) -> tuple[AuditResult | None, list[str]]:
    """What the verdicts that were read last say; without any, or where they say nothing any more, None and why."""
    data = read_json(run.people)
    try:
        return (audit_result_of(run, config, people_from(data)), []) if data else (None, [])
    except UserError as error:
        return None, [str(error)]


def _read_sample(path: Path) -> Sample:
    data: Mapping[str, Any] = read_json(path) or {}
    strata = {name: from_dict(Stratum, fields) for name, fields in data["strata"].items()}
    return Sample(data["seed"], data["ids"], strata, data["stratum_of"])
