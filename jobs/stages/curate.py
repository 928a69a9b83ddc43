"""Stage 4: parse, check, remove duplicates, split without leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from data_prep.curate import curate
from data_prep.curate.dataset import verify, write_dataset
from data_prep.files import AtomicFile, dumps
from data_prep.generate import models
from data_prep.outcomes import Ok, UserError
from data_prep.records import ImageFacts, Product, Rejected, Reply, Teacher
from jobs.run.layout import Step
from jobs.shards.journal import ReadReport
from jobs.shards.store import latest_outcomes, read_records
from jobs.stages.base import Outcome, SingleStage, outputs_digest, store_digest


class Curate(SingleStage):
    """Writes 4_curate: the splits, what was dropped and why, statistics, the dataset card."""

    name = "curate"

    def settings(self) -> Mapping[str, object]:
        return self.config.curate.model_dump(mode="json")

    def inputs(self) -> dict[str, str]:
        return {
            "prepare": outputs_digest(self.run_dir, Step("prepare")),
            "validate": store_digest(self.run_dir.store("validate")),
            "generate": store_digest(self.run_dir.store("generate")),
        }

    def execute(self) -> Outcome:
        facts: dict[str, ImageFacts] = {}
        failures: dict[str, str] = {}
        for key, outcome in latest_outcomes(self.run_dir.store("validate"), ImageFacts).items():
            if isinstance(outcome, Ok):
                facts[key] = outcome.value
            else:
                failures[key] = outcome.reason
        generate = self.config.generate
        folder = self.run_dir.dataset
        with AtomicFile(self.run_dir.rejected("curate")) as rejected:

            def reject(record: Rejected) -> None:
                rejected.write(dumps(record))

            products = self.read(self.run_dir.products, Product)
            dataset = curate.curate(products, facts, failures, self._replies(), self.config.curate, reject)
        splits, stats = dataset.splits, dataset.stats
        if not splits["train"] or not splits["test"]:
            dropped = _in_words(stats.pairs.dropped) or _in_words(stats.products.dropped)
            raise UserError(
                f"Curation left {len(splits['train'])} training and {len(splits['test'])} test questions, too few to go on "
                f"({dropped}). Each drop is in {self.run_dir.rejected('curate')}; ask about more products "
                f"(prepare.max_items) or loosen the rules (curate.*)."
            )
        write_dataset(
            dataset,
            folder,
            image_root=self.config.data.image_root,
            teacher=Teacher(generate.model, bool(generate.stand_in), models.terms_lines(generate.model)),
        )
        if leaks := verify(folder):
            raise UserError(f"Internal error: splits overlap; please report. {'; '.join(leaks[:3])}")
        counts = {"questions": sum(map(len, splits.values())), **{name: len(rows) for name, rows in splits.items()}}
        reasons = Counter(stats.products.dropped) + Counter(stats.pairs.dropped)
        return Outcome(counts, dict(sorted(reasons.items())), [folder / f"{name}.jsonl" for name in splits])

    def _replies(self) -> Iterator[Reply]:
        for record in read_records(self.run_dir.store("generate"), ReadReport()):
            outcome = record.outcome(Reply)
            # A reply without a valid pair is parsed, too: a later parser may find one, and nobody pays again.
            if outcome.value is not None and (isinstance(outcome, Ok) or outcome.retry):
                yield outcome.value


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
