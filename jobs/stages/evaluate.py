"""Stage 7: base and fine-tuned answers, question by question, one pass over the images for both.

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
from data_prep.records import Answered, Example, Prediction
from jobs.config import Config
from jobs.run.contents import weights_identity
from jobs.run.layout import BASE, CONTROLS, GREY, LORA, VARIANTS, RunDir, ShardStore, Step
from jobs.shards.digest import digest, text_digest
from jobs.shards.progress import ShardSource, settled_outcomes
from jobs.stages.base import ShardedStage, StageMarker, TaskResult, records_digest
from jobs.stages.status import DONE, OUTDATED, PARTIAL, StepStatus, is_complete, sharded_status
from vqa.evaluation.collapse import notice, spreads
from vqa.evaluation.control import GRAY, sample, with_gray, with_other_images

if TYPE_CHECKING:
    from vqa.inference.answerer import Answerer


class Evaluate(ShardedStage[Example]):
    """Writes 7_evaluate/<model>-<base|lora>: a `Prediction` a question, and predictions.csv at the end. Both are resumed
    on their own."""

    name = "evaluate"
    per_model = True
    needs_gpu = True
    value_type = Prediction
    other_content = "questions were answered about another image"

    def shards(self) -> int:
        return self.config.evaluate.shards

    def input_is_there(self) -> bool:
        return self.run_dir.split(self.config.evaluate.split).is_file()

    def input_digest(self) -> str:
        return split_digest(self.run_dir, self.config)

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
        common: dict[str, object] = {
            "model": model.model_dump(
                mode="json", include={"kind", "question_prefix", "instruction", "dtype", "quantization"}
            )
            | {"weights": weights_identity(self.run_dir, model.weights)},
            "answering": settings.model_dump(mode="json", include=set(settings.answer_fields())),
        }
        if settings.decoding == "ranking":  # an answer is one of the training split's
            curate = StageMarker.read(self.run_dir, Step("curate"))
            common["candidates"] = curate.outputs.get("train.jsonl", "") if curate else ""
        train = StageMarker.read(self.run_dir, Step("train", self.target))
        return common | ({"adapter": train.outputs if train else {}} if variant == LORA else {})

    def items(self) -> Iterator[Example]:
        return self.read(self.run_dir.split(self.config.evaluate.split), Example)

    def key(self, item: Example) -> str:
        return item.id

    def made_from(self, item: Example) -> str:
        return text_digest(item.question, item.image_sha256)  # not from the truth, which curation may spell otherwise

    def group(self, item: Example) -> str:
        return item.image_id  # the questions about an image stay together: it is encoded once

    def pending(self) -> list[int | None]:
        """A killed task may leave everything answered but no tables of today; a task with nothing to answer writes them."""
        return super().pending() or ([] if self._tables_digest() == self._summary().get("made_from") else [0])

    def _summary(self) -> Mapping[str, str]:
        """What was written at the end of the step."""
        known = read_json(self.run_dir.collapse(self.target)) or {}
        tables = [self.run_dir.predictions_table(self.target, variant) for variant in VARIANTS]
        return known if all(table.is_file() for table in tables) else {}

    def _tables_digest(self) -> str:
        """What the tables of the answers are made of: the questions and truths as they are now, and the answers."""
        return digest([self.input_digest(), *(records_digest(self, variant) for variant in VARIANTS)])

    def _write_tables(self) -> None:
        """predictions.csv of both variants: the answered questions with the truth as it is now, and whether both match."""
        from vqa.evaluation.metrics import exact_match

        now = self._tables_digest()
        for variant in VARIANTS:
            with AtomicFile(self.run_dir.predictions_table(self.target, variant)) as file:
                file.write(csv_line(["image_id", "question", "ground_truth", "prediction", "exact_match"]))
                for one in self.answers(variant)[0]:
                    right = int(exact_match(one.truth, one.answer))
                    file.write(csv_line([one.image_id, one.question, one.truth, one.answer, str(right)]))
        answered, _ = self.answers(LORA)
        said = notice(self.target, spreads((question_type(p.question, p.truth), p.truth, p.answer) for p in answered))
        write_json(self.run_dir.collapse(self.target), {"made_from": now, "notice": said})
        if said:
            print(said, flush=True)

    def answers(self, variant: str) -> tuple[list[Answered], dict[str, int]]:
        """`answers_of` one variant."""
        return answers_of(self, variant)

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
            self.config.model_with_features(self.target, self.run_dir.path),
            {BASE: None, LORA: self.run_dir.adapter(self.target)},
            self.config.evaluate,
            self.config.data.image_root,
            candidates,
        )

    def run(self, task: int | None, stop: Callable[[], bool]) -> TaskResult:
        result = super().run(task, stop)
        # Several tasks may end at once: each sees a complete step, and writes the same files whole.
        if is_complete(self) and self._tables_digest() != self._summary().get("made_from"):
            self._write_tables()
        return result

    def status(self) -> StepStatus:
        status = super().status()
        for control in self.controls() if status.state == DONE else ():
            found = sharded_status(control, self.step, input_is_there=True)
            if found.state != DONE:
                status.state, status.outdated = (OUTDATED, found.outdated) if found.outdated else (PARTIAL, "")
                status.notes.append(f"{self.step}: the control {control.name} has {found.remaining:,} questions left.")
        known = self._summary()
        if known.get("notice") and known["made_from"] == self._tables_digest():
            status.notes.append(known["notice"])
        return status


class Control(ShardSource[Example]):
    """Writes 7_evaluate/<model>-control-<swap|grey>: the fine-tuned model's answers about wrong images."""

    value_type = Prediction
    other_content = Evaluate.other_content

    def __init__(self, stage: Evaluate, name: str) -> None:
        self.stage, self.name = stage, name

    def stores(self) -> Mapping[str, ShardStore]:
        return {LORA: self.stage.run_dir.control(self.stage.target, self.name)}

    def settings(self, variant: str) -> Mapping[str, object]:
        return {**self.stage.settings(variant), "control": self.name}

    def input_digest(self) -> str:
        return digest([self.stage.input_digest(), self.stage.config.evaluate.control])

    def made_from(self, item: Example) -> str:
        shown = item.image_path if item.image_path == GRAY else item.image_sha256
        return text_digest(item.question, shown)

    def items(self) -> Sequence[Example]:
        evaluate = self.stage.config.evaluate
        path = self.stage.run_dir.split(evaluate.split)
        return control_items(path, self.stage.input_digest(), self.name, evaluate.control)

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


def split_digest(run: RunDir, config: Config) -> str:
    """The SHA-256 of the split that is evaluated; "" before it is there."""
    name = run.split(config.evaluate.split).name
    curate = StageMarker.read(run, Step("curate"))
    return curate.outputs.get(name, "") if curate else ""


def answers_of(source: ShardSource[Example], variant: str) -> tuple[list[Answered], dict[str, int]]:
    """The answers to the split's questions as they are now, sorted by question id, and how many questions failed, by reason.

    An answer to a question that is not in the split, or about another image, is not among them. The truths are the split's.
    The order and the content do not depend on the number of shards or attempts.
    """
    examples = {example.id: example for example in source.items()}
    made = {key: source.made_from(example) for key, example in examples.items()}
    failed: Counter[str] = Counter()
    answered = []
    for key, outcome in sorted(settled_outcomes(source, variant, made).items()):
        if isinstance(outcome, Failed):
            failed[outcome.reason] += 1
            continue
        e, said = examples[key], outcome.value
        answered.append(
            Answered(e.id, e.item_id, e.image_id, e.question, e.answer, said.answer, said.confidence, said.seconds)
        )
    return answered, dict(failed)
