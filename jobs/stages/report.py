"""Stage 8: one page about the run, from whatever the run has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import file_digest, read_json, read_jsonl
from data_prep.records import TEACHER_FILE, Answered, Example
from jobs.run.layout import LORA, VARIANTS, Step
from jobs.shards.digest import digest, known_settings
from jobs.shards.progress import ShardSource
from jobs.stages.base import Outcome, SingleStage, StageMarker, outputs_digest, records_digest
from jobs.stages.evaluate import Evaluate, answers_of
from jobs.stages.generate import Generate
from jobs.stages.status import StepStatus
from jobs.stages.validate import Validate
from jobs.stages.verify import Verify, opinions
from vqa.settings import ModelSettings

if TYPE_CHECKING:
    from vqa.report.inputs import ReportInputs


class Report(SingleStage):
    """Writes 8_report/index.html and report.json. A missing piece leaves a labeled gap."""

    name = "report"
    statuses: Callable[[], Sequence[StepStatus]] = staticmethod(
        lambda: ()
    )  # of the other steps; the pipeline knows them

    def settings(self) -> Mapping[str, object]:
        return {
            "report": self.config.report.model_dump(mode="json"),
            "split": self.config.evaluate.split,
            "bertscore": self.config.evaluate.model_dump(mode="json", include={"bertscore_model", "bertscore_layer"}),
        }

    def inputs(self) -> dict[str, str]:
        consistency = self.run_dir.self_consistency
        found = {"self_consistency": file_digest(consistency) if consistency.is_file() else ""}
        people = self.run_dir.people
        if self.config.verify.enabled:
            found |= {
                f"verify-{n}": records_digest(one, "")
                for n, one in enumerate(Verify(self.run_dir, self.config).sources())
            }
        found["people"] = file_digest(people) if people.is_file() else ""
        found["curate"] = outputs_digest(self.run_dir, Step("curate"))
        for model in self.config.models:
            found[f"train:{model}"] = outputs_digest(self.run_dir, Step("train", model))
            evaluate = Evaluate(self.run_dir, self.config, model)
            for variant in VARIANTS:
                found[f"{model}-{variant}"] = records_digest(evaluate, variant)
            for control in evaluate.controls():
                found[f"{model}-control-{control.name}"] = records_digest(control, LORA)
        return found

    def execute(self) -> Outcome:
        answered = self.write(self.run_dir.report)
        pages = [self.run_dir.report / name for name in ("index.html", "report.json")]
        return Outcome({"answers": answered}, outputs=pages)

    def write(self, out: Path) -> int:
        """Write the page and report.json into a folder; the number of answers in them."""
        from vqa.report.build import build

        inputs = self.gather()
        for figures in build(inputs, out).models.values():
            if figures.verdict:
                print(figures.verdict.headline, flush=True)
        return sum(len(rows) for variants in inputs.predictions.values() for rows in variants.values())

    def gather(self) -> ReportInputs:
        """What there is to report on."""
        from jobs.stages.audit import people_say
        from vqa.evaluation.bertscore import BertSettings
        from vqa.report.inputs import ReportInputs, StageSummary

        evaluate = self.config.evaluate
        predictions: dict[str, dict[str, list[Answered]]] = {}
        failed: dict[str, dict[str, int]] = {}
        controls: dict[str, dict[str, list[Answered]]] = {}
        parameters, logs = {}, {}
        for model in self.config.models:
            folder = self.run_dir.step_folder(Step("train", model))
            trained = StageMarker.read(self.run_dir, Step("train", model))
            if trained and (table := read_json(folder / "parameters.json")):
                parameters[model] = {**table, **_training_settings(trained)}
            logs[model] = [*_lines(folder / "log.jsonl", "step"), *_validations(folder / "validation.jsonl")]
            evaluated = Evaluate(self.run_dir, self.config, model)
            for variant in VARIANTS if evaluated.input_is_there() else ():
                rows, reasons = evaluated.answers(variant)
                if rows:
                    predictions.setdefault(model, {})[variant] = rows
                if reasons:
                    failed[f"{model}-{variant}"] = reasons
            controls[model] = {control.name: answers_of(control, LORA)[0] for control in evaluated.controls()}
        summaries, warnings = self._stages(StageSummary)
        test, (audit, problems) = list(self._examples(evaluate.split)), people_say(self.run_dir, self.config)
        return ReportInputs(
            run=self._run(),
            stages=summaries,
            stats=self._stats(),
            sample_sheet=self.run_dir.dataset / "samples.jpg",
            train=list(self._examples("train")),
            test=test,
            opinions=opinions(self.run_dir, self.config, test),
            audit=audit,
            predictions=predictions,
            controls=controls,
            failed=failed,
            parameters=parameters,
            training_log=logs,
            image_root=self.config.data.image_root,
            thumbnails=read_json(self.run_dir.thumbnails) or {},
            warnings=[*warnings, *problems],
            stand_in=bool((read_json(self.run_dir.dataset / TEACHER_FILE) or {}).get("stand_in")),
            settings=self.config.report,
            bert=BertSettings(evaluate.bertscore_model, evaluate.bertscore_layer) if evaluate.bertscore_model else None,
        )

    def _run(self) -> Mapping[str, Any]:
        """What run.json says of the launches; and the settings that each step was made with, which may not be today's."""
        run = {name: value for name, value in (read_json(self.run_dir.run_file) or {}).items() if name != "config"}
        made = {}
        for status in self.statuses():
            step = Step.parse(status.step)
            if marker := StageMarker.read(self.run_dir, step):
                made[status.step] = marker.settings
        return {**run, "made_with": made | self._stored_settings()}

    def _stored_settings(self) -> dict[str, Mapping[str, object]]:
        """The settings of the records that the report counts."""
        evaluated = {
            str(Step("evaluate", name)): Evaluate(self.run_dir, self.config, name) for name in self.config.models
        }
        sources = {"validate": Validate(self.run_dir, self.config), "generate": Generate(self.run_dir, self.config)}
        every: dict[str, ShardSource[Any]] = {**sources, **evaluated}
        found: dict[str, Mapping[str, object]] = {}
        for step, source in every.items():
            for variant, store in source.stores().items():
                if known := known_settings(store, digest(source.settings(variant))):
                    found[f"{step}-{variant}" if variant else step] = known
        return found

    def _stats(self) -> dict[str, Any]:
        """What curation counted, and the generator's self-consistency where it was measured."""
        stats: dict[str, Any] = read_json(self.run_dir.dataset / "stats.json") or {}
        if (consistency := read_json(self.run_dir.self_consistency)) is not None:
            stats["self_consistency"] = {
                name: value for name, value in consistency.items() if name != "different_answers"
            }
        return stats

    def _examples(self, split: str) -> Iterator[Example]:
        path = self.run_dir.split(split)
        return read_jsonl(path, Example) if path.is_file() else iter(())

    def _stages(self, summary: Any) -> tuple[list[Any], list[str]]:
        """Counts and times of every other step so far, and the sentences that a reader must know about them."""
        summaries, warnings = [], []
        for status in self.statuses():
            counts: dict[str, int] = dict(status.counts)
            if status.items is not None:
                counts = {"items": status.items, "done": status.done, "failed": status.failed}
            summaries.append(
                summary(
                    name=status.step,
                    counts=counts,
                    seconds=status.seconds,
                    reasons=status.reasons,
                    input_tokens=status.input_tokens or None,
                    output_tokens=status.output_tokens or None,
                    dollars=status.dollars if status.input_tokens else None,
                    gpu_hours=status.used.gpu_hours or None,
                    cpu_hours=status.used.cpu_hours or None,
                    max_rss_bytes=status.used.max_rss_bytes or None,
                    proposal=status.used.proposal,
                )
            )
            warnings += status.warnings()
        return summaries, warnings


def _training_settings(trained: StageMarker) -> Mapping[str, object]:
    """What an adapter was trained with, as its marker says."""
    model: Mapping[str, Any] = trained.settings["model"]  # type: ignore[assignment]
    batch, accumulation = ModelSettings.model_validate(model).batches
    return {
        "lora": model["lora"],
        "effective_batch": batch * accumulation,
        "training": trained.settings["train"],
    }


def _lines(path: Path, key: str) -> list[Mapping[str, Any]]:
    """The rows of a log; of rows about the same step (a part done again after a kill) the last counts."""
    rows: dict[Any, Mapping[str, Any]] = {}
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by a kill
            rows[row[key]] = row
    return [rows[step] for step in sorted(rows)]


def _validations(path: Path) -> list[Mapping[str, Any]]:
    return [
        {"step": row["step"], "val_exact_match": row["exact_match"], "val_loss": row.get("loss")}
        for row in _lines(path, "step")
    ]
