"""Stage 1: read ABO's metadata, keep what qualifies, one line a product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from data_prep.abo import listings
from data_prep.files import AtomicFile, dumps, write_jsonl
from data_prep.records import Rejected
from jobs.stages.base import Outcome, SingleStage


class Prepare(SingleStage):
    """Writes 1_prepare/products.jsonl, and every dropped listing with its reason to rejected.jsonl."""

    name = "prepare"

    def settings(self) -> Mapping[str, object]:
        return self.config.prepare.model_dump(mode="json")

    def inputs(self) -> dict[str, str]:
        return listings.find_sources(self.config.data).digests()

    def check_settings(self, *, redo: bool) -> None:
        listings.find_sources(self.config.data)  # says what is missing before anything is written

    def execute(self) -> Outcome:
        sources = listings.find_sources(self.config.data)
        reasons: Counter[str] = Counter()
        products, rejected = self.run_dir.products, self.run_dir.rejected("prepare")
        with AtomicFile(rejected) as file:

            def reject(record: Rejected) -> None:
                reasons[record.reason] += 1
                file.write(dumps(record))

            kept = write_jsonl(products, listings.prepare(sources, self.config.prepare, reject))
        counts = {"listings": kept + reasons.total(), "products": kept, "rejected": reasons.total()}
        return Outcome(counts, dict(sorted(reasons.items())), [products])
