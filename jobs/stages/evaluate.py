"""Stage 6: base and fine-tuned answers, question by question, one pass over the images for both.

Then the fine-tuned model answers a sample of the questions about wrong images: the control, see `vqa.evaluation.control`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.curate.question_text import question_type
from data_prep.dataset_csv import csv_line
from data_prep.files import AtomicFile, read_json, read_jsonl, write_json
from data_prep.outcomes import Failed, Todo, UserError
from data_prep.records import Example, Prediction
from jobs.run.layout import BASE, CONTROLS, GREY, LORA, VARIANTS, RunDir, ShardStore, Step
from jobs.shards.digest import digest
from jobs.shards.progress import ShardSource
from jobs.shards.store import latest_outcomes
from jobs.stages.base import ShardedStage, StageMarker, TaskResult, store_digest
from jobs.stages.status import DONE, PARTIAL, StepStatus, finished_shards, sharded_status
from vqa.evaluation.collapse import notice, spreads
from vqa.evaluation.control import sample, with_gray, with_other_images

if TYPE_CHECKING:
    from vqa.inference.answerer import Answerer


class Evaluate(ShardedStage[Example]):
    """Writes 6_evaluate/<model>-<base|lora>: a `Prediction` a question, and predictions.csv at the end. Both are resumed
    on their own."""

    name = "evaluate"
    per_model = True
    needs_gpu = True
    value_type = Prediction

    def shards(self) -> int:
        return self.config.evaluate.shards

    def expected_items(self) -> int | None:
        marker = StageMarker.read(self.run_dir, Step("curate"))
        return marker.counts.get(self.config.evaluate.split) if marker else None

    def sources(self) -> Sequence[ShardSource[Example]]:
        return [self, *self.controls()]

    def controls(self) -> list[Control]:
        """The control's sources; none where it is off."""
        return [Control(self, name) for name in CONTROLS] if self.config.evaluate.control else []

    def stores(self) -> Mapping[str, ShardStore]:
        return {variant: self.run_dir.predictions(self.target, variant) for variant in VARIANTS}

    def settings(self, variant: str) -> Mapping[str, object]:
        settings = self.config.evaluate
        model = self.config.models[self.target]
        common = {
            "model": model.model_dump(mode="json", include={"kind", "weights", "question_prefix"}),
            "answering": settings.model_dump(mode="json", include=set(settings.answer_fields())),
        }
        train = StageMarker.read(self.run_dir, Step("train", self.target))
        return common | ({"adapter": train.outputs if train else {}} if variant == LORA else {})

    def check_settings(self) -> None:
        """Nothing can be said before the launch: it may train the adapter anew, which is part of the settings."""

    def items(self) -> Iterator[Example]:
        return self.read(self.run_dir.split(self.config.evaluate.split), Example)

    def key(self, item: Example) -> str:
        return item.id

    def group(self, item: Example) -> str:
        return item.image_id  # the questions about an image stay together: it is encoded once

    def pending(self) -> list[int | None]:
        """A killed task may leave everything answered but no predictions.csv; a task with nothing to answer writes it."""
        tables = [self.run_dir.predictions_table(self.target, variant) for variant in VARIANTS]
        return super().pending() or ([] if all(table.is_file() for table in tables) else [0])

    def _write_table(self, variant: str) -> None:
        """predictions.csv: the answered questions of one variant, with the truth and whether both match."""
        from vqa.evaluation.metrics import exact_match

        questions = {example.id: example for example in self.items()}
        predictions, _ = read_predictions(self.run_dir, self.target, variant)
        with AtomicFile(self.run_dir.predictions_table(self.target, variant)) as file:
            file.write(csv_line(["image_id", "question", "ground_truth", "prediction", "exact_match"]))
            for found in predictions:
                if asked := questions.get(found.id):
                    right = int(exact_match(asked.answer, found.answer))
                    file.write(csv_line([asked.image_id, asked.question, asked.answer, found.answer, str(right)]))

    def process(self, todos: Iterator[Todo[Example]]) -> None:
        answerer = self._answerer
        before = answerer.seconds, answerer.waited
        answerer.process(todos)
        if seconds := answerer.seconds - before[0]:
            waited = (answerer.waited - before[1]) / seconds
            print(f"{answerer.device.type} waited {waited:.0%} of the time for images")

    @functools.cached_property
    def _answerer(self) -> Answerer:
        """The model, loaded once for the questions and their controls."""
        from vqa.inference.answerer import Answerer  # torch takes seconds to import; launch and status never need it

        if StageMarker.read(self.run_dir, Step("train", self.target)) is None:
            raise UserError(
                f"{self.target} is not trained yet, so there is nothing to compare: run --stages train first."
            )
        candidates = sorted({example.answer for example in read_jsonl(self.run_dir.split("train"), Example)})
        return Answerer(
            self.config.models[self.target],
            {BASE: None, LORA: self.run_dir.adapter(self.target)},
            self.config.evaluate,
            self.config.data.image_root,
            candidates,
        )

    def run(self, task: int | None, stop: Callable[[], bool]) -> TaskResult:
        result = super().run(task, stop)
        for variant, answers in self.stores().items():
            # Several tasks may end at once: each sees a complete step, and writes the same file whole.
            if finished_shards(answers) is not None:
                self._write_table(variant)
        store = self.run_dir.predictions(self.target, LORA)
        if finished_shards(store) is not None:  # the last task sees the answers of all
            predictions, _ = read_predictions(self.run_dir, self.target, LORA)
            said = notice(
                self.target, spreads((question_type(p.question, p.truth), p.truth, p.answer) for p in predictions)
            )
            write_json(self.run_dir.collapse(self.target), {"records": store_digest(store), "notice": said})
            if said:
                print(said, flush=True)
        return result

    def status(self) -> StepStatus:
        status = super().status()
        for control in self.controls():
            found = sharded_status(control, self.step, len(control.items()))
            if status.state == DONE and found.state != DONE:
                status.state = PARTIAL
                status.notes.append(f"{self.step}: the control {control.name} has {found.remaining:,} questions left.")
        known = read_json(self.run_dir.collapse(self.target)) or {}
        if known.get("notice") and known["records"] == store_digest(self.run_dir.predictions(self.target, LORA)):
            status.notes.append(known["notice"])
        return status


class Control(ShardSource[Example]):
    """Writes 6_evaluate/<model>-control-<swap|grey>: the fine-tuned model's answers about wrong images."""

    value_type = Prediction

    def __init__(self, stage: Evaluate, name: str) -> None:
        self.stage, self.name = stage, name

    def stores(self) -> Mapping[str, ShardStore]:
        return {LORA: self.stage.run_dir.control(self.stage.target, self.name)}

    def settings(self, variant: str) -> Mapping[str, object]:
        # Other questions or other images are another control.
        asked = [(item.id, item.image_path) for item in self.items()]
        return {**self.stage.settings(variant), "control": f"{len(asked)} questions and images {digest(asked)}"}

    def items(self) -> Sequence[Example]:
        evaluate, curate = self.stage.config.evaluate, StageMarker.read(self.stage.run_dir, Step("curate"))
        path = self.stage.run_dir.split(evaluate.split)
        version = curate.outputs.get(path.name, "") if curate else ""
        return control_items(path, version, self.name, evaluate.control)

    def key(self, item: Example) -> str:
        return item.id

    def group(self, item: Example) -> str:
        return item.image_id

    def process(self, todos: Iterator[Todo[Example]]) -> None:
        self.stage.process(todos)


@functools.lru_cache(maxsize=len(CONTROLS))
def control_items(split: Path, version: str, name: str, count: int) -> Sequence[Example]:
    """The questions of a control, with the images that are shown; none without a split. ``version``: the split's digest."""
    examples = list(read_jsonl(split, Example)) if split.is_file() else []
    asked = sample(examples, count)
    return with_gray(asked) if name == GREY else with_other_images(asked, examples)


def read_predictions(run: RunDir, model: str, variant: str) -> tuple[list[Prediction], dict[str, int]]:
    """All answers of one model, sorted by question id, and how many questions failed, by reason.

    The order and the content do not depend on the number of shards or attempts.
    """
    failed: Counter[str] = Counter()
    predictions = []
    for _, outcome in sorted(latest_outcomes(run.predictions(model, variant), Prediction).items()):
        if isinstance(outcome, Failed):
            failed[outcome.reason] += 1
        else:
            predictions.append(outcome.value)
    return predictions, dict(failed)
