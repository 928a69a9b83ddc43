"""The stages in order: which steps a run has, what follows what, and how far they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.files import read_json
from data_prep.outcomes import UserError, unknown_name
from jobs.config import Config
from jobs.run.layout import STAGES, RunDir, Step
from jobs.run.usage import used_by
from jobs.stages.base import Stage
from jobs.stages.curate import Curate
from jobs.stages.evaluate import Evaluate
from jobs.stages.generate import Generate
from jobs.stages.prepare import Prepare
from jobs.stages.report import Report
from jobs.stages.status import DONE, OUTDATED, WAITING, StepStatus
from jobs.stages.train import Train
from jobs.stages.validate import Validate
from jobs.stages.verify import Verify

STAGE_CLASSES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (Prepare, Validate, Generate, Curate, Verify, Train, Evaluate, Report)
}
# With data.dataset_csv, curate makes what these would have given.
REPLACED_BY_CSV = ("prepare", "validate", "generate")


def parse_stages(text: str | None) -> list[str]:
    """The stages that ``--stages`` names, in pipeline order; all of them without it.

    Raises:
        UserError: a name is not a stage; lists the known ones and suggests the nearest.
    """
    if not text:
        return list(STAGES)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in STAGES:
            raise UserError(f"--stages: {unknown_name(name, STAGES, 'stage')}")
    return [stage for stage in STAGES if stage in names]


def steps_of(config: Config, stages: Sequence[str] = STAGES) -> list[Step]:
    """Every step of a run in order; training and evaluation are one a model."""
    left_out = {
        *(REPLACED_BY_CSV if config.data.dataset_csv else ()),
        *(() if config.verify.enabled else (Verify.name,)),
    }
    return [
        Step(stage, target)
        for stage in STAGES
        if stage in stages and stage not in left_out
        for target in (config.models if STAGE_CLASSES[stage].per_model else ("",))
    ]


def steps_before(step: Step, config: Config) -> list[Step]:
    """The steps whose results a step reads."""
    before: dict[str, list[Step]] = {
        "prepare": [],
        "validate": [Step("prepare")],
        "generate": [Step("validate")],
        "curate": steps_of(config, ("validate", "generate")),
        "verify": [Step("curate")],
        # After verify even where it trains on all rows: a run that ends early then ends without a training, not without opinions.
        "train": steps_of(config, ("curate", "verify")),
        "evaluate": [Step("curate"), Step("train", step.target)],
        "report": steps_of(config, STAGES[:-1]),
    }
    return before[step.stage]


def make_stage(step: Step, run: RunDir, config: Config) -> Stage:
    """The stage of a step.

    Raises:
        UserError: the step names no stage, or a model that the configuration does not have.
    """
    if step.stage not in STAGE_CLASSES:
        raise UserError(unknown_name(step.stage, STAGES, "stage"))
    if STAGE_CLASSES[step.stage].per_model and step.target not in config.models:
        raise UserError(f"{step}: {unknown_name(step.target, list(config.models), 'model')}")
    stage = STAGE_CLASSES[step.stage](run, config, step.target)
    if isinstance(stage, Report):
        others = steps_of(config, STAGES[:-1])
        stage.statuses = lambda: [_status(make_stage(other, run, config)) for other in others]
    return stage


def run_status(run: RunDir, config: Config) -> list[StepStatus]:
    """The state of every step, in order."""
    steps = steps_of(config)
    statuses = [_status(make_stage(step, run, config)) for step in steps]
    found = dict(zip(steps, statuses, strict=True))
    for step, status in found.items():  # in order: what follows an outdated step is outdated, and so on
        before = [str(one) for one in steps_before(step, config) if one in found and found[one].state == OUTDATED]
        if status.state == DONE and before:
            status.state, status.outdated = OUTDATED, f"{', '.join(before)} changed"
    page = read_json(run.report / "report.json") or {}
    begun = [step for step, status in found.items() if status.state != WAITING]
    # A report is made of whatever there is; every other step of all the steps before it.
    needed = {one for step in begun if step.stage != "report" for one in steps_before(step, config)}
    for step, status in found.items():
        if step in needed and step not in begun:
            status.notes.append(_vanished(status.step, page))
    report = statuses[-1]
    if report.state == DONE:
        known = {warning for status in statuses for warning in status.warnings()}
        report.notes = headlines(page) + [warning for warning in page.get("warnings", []) if warning not in known]
    return statuses


def _status(stage: Stage) -> StepStatus:
    status = stage.status()
    status.used = used_by(stage.run_dir, stage.step)
    if lost := str(stage.lost()):
        status.notes.append(f"{stage.step}: {lost}.")
    return status


def _vanished(step: str, page: Mapping[str, Any]) -> str:
    """What to say of a step of which nothing is there, though a later one was done; ``page``: report.json."""
    dollars = sum(stage["dollars"] or 0 for stage in page.get("stages", ()) if stage["name"] == step)
    cost = f" It cost ${dollars:,.2f}." if dollars else ""
    return f"{step}: all of its files are gone, though a later step was done from them.{cost}"


def headlines(page: Mapping[str, Any]) -> list[str]:
    """What report.json says of each model, a sentence each."""
    verdicts = (model.get("verdict") for model in page.get("models", {}).values())
    return [verdict["headline"] for verdict in verdicts if verdict]


def task_command(run: RunDir, step: Step, shard: int | None = None) -> list[str]:
    """The command of one task: the same on one machine, in an array, and by hand."""
    command = [sys.executable, "-m", "jobs.backends.task", str(run.path), str(step)]
    return command if shard is None else [*command, "--shard", str(shard)]
