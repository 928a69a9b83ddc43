"""Stage 6: base and fine-tuned answers, question by question, one pass over the images for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from data_prep.files import read_jsonl
from data_prep.outcomes import Failed, Todo, UserError
from data_prep.records import Example, Prediction
from jobs.run.layout import BASE, LORA, VARIANTS, RunDir, ShardStore, Step
from jobs.shards.store import latest_outcomes
from jobs.stages.base import ShardedStage, StageMarker


class Evaluate(ShardedStage[Example]):
    """Writes 6_evaluate/<model>-<base|lora>: a `Prediction` a question. Both are resumed on their own."""

    name = "evaluate"
    per_model = True
    needs_gpu = True
    value_type = Prediction

    def shards(self) -> int:
        return self.config.evaluate.shards

    def expected_items(self) -> int | None:
        marker = StageMarker.read(self.run_dir, Step("curate"))
        return marker.counts.get(self.config.evaluate.split) if marker else None

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

    def process(self, todos: Iterator[Todo[Example]]) -> None:
        from vqa.inference.answerer import Answerer  # torch takes seconds to import; launch and status never need it

        if StageMarker.read(self.run_dir, Step("train", self.target)) is None:
            raise UserError(
                f"{self.target} is not trained yet, so there is nothing to compare: run --stages train first."
            )
        candidates = sorted({example.answer for example in read_jsonl(self.run_dir.split("train"), Example)})
        answerer = Answerer(
            self.config.models[self.target],
            {BASE: None, LORA: self.run_dir.adapter(self.target)},
            self.config.evaluate,
            self.config.data.image_root,
            candidates,
        )
        answerer.process(todos)
        if answerer.seconds:
            print(f"{answerer.device.type} waited {answerer.waited / answerer.seconds:.0%} of the time for images")


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
