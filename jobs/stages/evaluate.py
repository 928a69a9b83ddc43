"""Stage 6: base and fine-tuned answers, question by question, one pass over the images for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from data_prep.files import read_json, read_jsonl
from data_prep.outcomes import Emit, UserError
from data_prep.records import Example, Prediction, from_dict
from jobs.run.layout import BASE, LORA, RunDir, Step, ShardStore
from jobs.shards.journal import Damage
from jobs.shards.loop import Previous, Work, latest_outcomes
from jobs.stages.base import ShardedStage
from jobs.stages.weights import model_settings


class Evaluate(ShardedStage):
    """Writes 6_evaluate/<model>-<base|lora>: a `Prediction` a question. Both are resumed on their own."""

    name = "evaluate"

    def shards(self) -> int:
        return self.config.evaluate.shards

    def variants(self) -> dict[str, ShardStore]:
        """base always; lora where this run trains."""
        return {variant: self.run_dir.predictions(self.target, variant) for variant in (BASE, LORA)}

    def work(self) -> Work[Example]:
        model, settings = model_settings(self.run_dir, self.config, self.target), self.config.evaluate
        train = read_json(self.run_dir.done_file(Step("train", self.target)))
        adapter = self.run_dir.adapter(self.target)
        answering = settings.model_dump(mode="json", include=set(settings.answer_fields()))
        identity = self.config.models[self.target].model_dump(
            mode="json", include={"kind", "weights", "question_prefix"}
        )
        common = {"model": identity, "answering": answering}
        identities: dict[str, dict[str, Any]] = {
            BASE: common,
            LORA: common | {"adapter": train["outputs"] if train else {}},
        }

        def process(
            items: Iterator[Example],
            emits: Mapping[str, Emit],
            wanted: Callable[[str, str], bool],
            previous: Previous,
        ) -> None:
            from vqa.inference.answerer import (
                Answerer,  # torch takes seconds to import; launch and status never need it
            )

            if train is None:
                raise UserError(
                    f"{self.target} is not trained yet, so there is nothing to compare: run --stages train first."
                )
            candidates = sorted({e.answer for e in read_jsonl(self.run_dir.split("train"), Example)})
            answerer = Answerer(model, {BASE: None, LORA: adapter}, settings, self.config.data.image_root, candidates)
            answerer.process(items, emits, wanted)
            if answerer.seconds:
                print(f"{answerer.device.type} waited {answerer.waited / answerer.seconds:.0%} of the time for images")

        return Work(
            stores=self.variants(),
            settings=identities,
            items=partial(self.read, self.run_dir.split(settings.split), Example),
            key=lambda example: example.id,
            group=lambda example: example.image_id,  # the questions about an image stay together: it is encoded once
            process=process,
        )


def read_predictions(run: RunDir, model: str, variant: str) -> tuple[list[Prediction], dict[str, int]]:
    """All answers of one model, sorted by question id, and how many questions failed, by reason.

    The order and the content do not depend on the number of shards or attempts.
    """
    outcomes = latest_outcomes(run.predictions(model, variant), Damage())
    failed: dict[str, int] = {}
    predictions = []
    for key in sorted(outcomes):
        outcome = outcomes[key]
        if hasattr(outcome, "reason"):
            failed[outcome.reason] = failed.get(outcome.reason, 0) + 1
        else:
            predictions.append(from_dict(Prediction, outcome.value))
    return predictions, failed
