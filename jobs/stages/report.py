"""Stage 7: one page about the run, from whatever the run has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.files import file_digest, read_json, read_jsonl
from data_prep.records import Example, Prediction
from jobs.run.layout import CONTROLS, VARIANTS, Step
from jobs.stages.base import Outcome, SingleStage, outputs_digest, store_digest
from jobs.stages.evaluate import read_predictions
from jobs.stages.status import StepStatus


class Report(SingleStage):
    """Writes 7_report/index.html and report.json. A missing piece leaves a labeled gap."""

    name = "report"
    statuses: Callable[[], Sequence[StepStatus]] = staticmethod(
        lambda: ()
    )  # of the other steps; the pipeline knows them

    def settings(self) -> Mapping[str, object]:
        return {
            "report": self.config.report.model_dump(mode="json"),
            "bertscore": self.config.evaluate.model_dump(mode="json", include={"bertscore_model", "bertscore_layer"}),
        }

    def inputs(self) -> dict[str, str]:
        consistency = self.run_dir.self_consistency
        found = {"self_consistency": file_digest(consistency) if consistency.is_file() else ""}
        found["curate"] = outputs_digest(self.run_dir, Step("curate"))
        for model in self.config.models:
            found[f"train:{model}"] = outputs_digest(self.run_dir, Step("train", model))
            for variant in VARIANTS:
                found[f"{model}-{variant}"] = store_digest(self.run_dir.predictions(model, variant))
            for control in self._controls():
                found[f"{model}-control-{control}"] = store_digest(self.run_dir.control(model, control))
        return found

    def execute(self) -> Outcome:
        answered = self.write(self.run_dir.report)
        pages = [self.run_dir.report / name for name in ("index.html", "report.json")]
        return Outcome({"answers": answered}, outputs=pages)

    def write(self, out: Path) -> int:
        """Write the page and report.json into a folder; the number of answers in them."""
        from vqa.evaluation.bertscore import BertSettings
        from vqa.report.build import build
        from vqa.report.inputs import ReportInputs, StageSummary

        evaluate = self.config.evaluate
        bert, layer = evaluate.bertscore_model, evaluate.bertscore_layer
        predictions: dict[str, dict[str, list[Prediction]]] = {}
        failed: dict[str, dict[str, int]] = {}
        controls: dict[str, dict[str, list[Prediction]]] = {}
        parameters, logs = {}, {}
        for model in self.config.models:
            folder = self.run_dir.step_folder(Step("train", model))
            if table := read_json(folder / "parameters.json"):
                settings = self.config.models[model]
                parameters[model] = {
                    **table,
                    "lora": settings.lora.model_dump(mode="json"),
                    "batch_size": settings.batch_size,
                    "gradient_accumulation_steps": settings.gradient_accumulation,
                    "training": self.config.train.model_dump(mode="json"),
                }
            logs[model] = [*_lines(folder / "log.jsonl", "step"), *_validations(folder / "validation.jsonl")]
            for variant in VARIANTS:
                rows, reasons = read_predictions(self.run_dir, model, variant)
                if rows:
                    predictions.setdefault(model, {})[variant] = rows
                if reasons:
                    failed[f"{model}-{variant}"] = reasons
            controls[model] = {
                name: read_predictions(self.run_dir, model, f"control-{name}")[0] for name in self._controls()
            }
        summaries, warnings = self._stages(StageSummary)
        inputs = ReportInputs(
            run=read_json(self.run_dir.run_file) or {},
            stages=summaries,
            stats=self._stats(),
            sample_sheet=self.run_dir.dataset / "samples.jpg",
            train=list(self._examples("train")),
            test=list(self._examples(evaluate.split)),
            predictions=predictions,
            controls=controls,
            failed=failed,
            parameters=parameters,
            training_log=logs,
            image_root=self.config.data.image_root,
            thumbnails=read_json(self.run_dir.thumbnails) or {},
            warnings=warnings,
            stand_in=self.config.generate.stand_in is not None,
            settings=self.config.report,
            bert=BertSettings(bert, layer) if bert else None,
        )
        for figures in build(inputs, out).models.values():
            if figures.verdict:
                print(figures.verdict.headline, flush=True)
        return sum(len(rows) for variants in predictions.values() for rows in variants.values())

    def _controls(self) -> Sequence[str]:
        return CONTROLS if self.config.evaluate.control else ()

    def _stats(self) -> dict[str, Any]:
        """What curation counted, and the generator's self-consistency where it was measured."""
        stats: dict[str, Any] = read_json(self.run_dir.dataset / "stats.json") or {}
        if (consistency := read_json(self.run_dir.self_consistency)) is not None:
            stats["asked_twice"] = {name: value for name, value in consistency.items() if name != "different_answers"}
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
                )
            )
            warnings += status.warnings()
        return summaries, warnings


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
    return [{"step": row["step"], "val_exact_match": row["exact_match"]} for row in _lines(path, "step")]
