"""Stage 3: ask for five one-word questions about every product whose image can be used. The only stage that costs money."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from data_prep import dataset_csv
from data_prep.generate import workers
from data_prep.generate.prompt import verdict
from data_prep.generate.qa_parser import QAParseError, QAParser
from data_prep.outcomes import Emit
from data_prep.records import Product
from jobs.run.layout import ShardStore
from jobs.shards.journal import Damage
from jobs.shards.loop import Previous, Work, store_records
from jobs.stages.base import ShardedStage


class Generate(ShardedStage):
    """Writes 3_generate: every raw reply, before anything parses it; dataset_<shard>.csv when a shard is done."""

    name = "generate"

    def shards(self) -> int:
        return self.config.generate.shards

    @property
    def store(self) -> ShardStore:
        """Where the replies go."""
        return self.run_dir.store("generate")

    @cached_property
    def readable(self) -> set[str]:
        """The items whose image was decoded; nobody pays for questions about an image that is not there."""
        records = store_records(self.run_dir.store("validate"), Damage())
        return {record["key"] for record in records if record["ok"]}

    def items(self) -> Iterator[Product]:
        """The products to ask about, streamed."""
        return (product for product in self.read(self.run_dir.products, Product) if product.item_id in self.readable)

    def work(self) -> Work[Product]:
        settings = self.config.generate

        def process(
            items: Iterator[Product],
            emits: Mapping[str, Emit],
            wanted: Callable[[str, str], bool],
            previous: Previous,
        ) -> None:
            workers.ask_all(
                items,
                emits["generate"],
                image_root=self.config.data.image_root,
                settings=settings,
                quota_folder=self.run_dir.quota,
                batches_folder=self.run_dir.batches,
                previous=previous,
                stopping=self.stopping,
            )

        return Work(
            stores={"generate": self.store},
            settings={"generate": workers.identity(settings)},
            items=self.items,
            key=lambda product: product.item_id,
            process=process,
            max_tries=settings.max_tries,
            max_replies=settings.max_asks,
            verdict=lambda value: verdict(value, settings),
            finish=self.finish,
        )

    def finish(self, shard: int) -> dict[str, Any]:
        """Write the shard's CSV, the best reply of each product, and sum what the shard cost."""
        folder = self.store.shard(shard)
        parser = QAParser(require_category=self.config.generate.require_category)
        best: dict[str, dataset_csv.CsvRow] = {}
        totals: Counter[str] = Counter()
        dollars = 0.0
        for record in store_records(self.store, Damage(), shard=shard):
            value = record.get("value") or {}
            totals["input_tokens"] += value.get("input_tokens", 0)
            totals["output_tokens"] += value.get("output_tokens", 0)
            dollars += value.get("dollars", 0.0)
            if not record["ok"]:
                continue
            try:
                pairs = parser.parse(value["text"] or "").pairs
            except QAParseError:
                continue
            known = best.get(record["key"])
            if pairs and (known is None or len(pairs) >= len(known.qas)):
                best[record["key"]] = dataset_csv.CsvRow(record["key"], value["image_id"], pairs)
        dataset_csv.write(folder / f"dataset_{shard}.csv", (best[key] for key in sorted(best)))
        return {**totals, "dollars": dollars}
