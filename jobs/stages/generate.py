"""Stage 3: ask for five one-word questions about every product whose image can be used. The only stage that costs money."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

from data_prep import dataset_csv
from data_prep.files import read_json
from data_prep.generate import cost, models
from data_prep.generate.batch_state import products_under_way
from data_prep.generate.dispatcher import read_keys
from data_prep.generate.prompt import check_reply, rule_violations
from data_prep.generate.quota.answering_model import expected_model, is_version_of
from data_prep.generate.workers import fingerprint, generate_all, identity
from data_prep.outcomes import Todo, UserError
from data_prep.records import Product, Reply, from_dict
from jobs.run.layout import ShardStore
from jobs.shards.journal import ReadReport
from jobs.shards.marker import ShardMarker, Spending
from jobs.shards.progress import Limits
from jobs.shards.store import read_records
from jobs.stages.base import ShardedStage, TaskResult
from jobs.stages.status import DONE, PARTIAL, StepStatus, finished_shards


class Generate(ShardedStage[Product]):
    """Writes 3_generate: every raw reply, before anything parses it; dataset_<shard>.csv when a shard is done."""

    name = "generate"
    value_type = Reply

    def shards(self) -> int:
        return self.config.generate.shards

    def expected_items(self) -> int | None:
        markers = finished_shards(self.run_dir.store("validate"))
        return sum(marker.done for marker in markers) if markers else None

    @property
    def store(self) -> ShardStore:
        """Where the replies go."""
        return self.run_dir.store("generate")

    def stores(self) -> Mapping[str, ShardStore]:
        return {"": self.store}

    def settings(self, variant: str) -> Mapping[str, object]:
        return identity(self.config.generate)

    def check_settings(self) -> None:
        super().check_settings()
        settings = self.config.generate
        if settings.stand_in is not None or (self.run_dir.products.is_file() and not self.pending()):
            return
        card, day = models.card(settings.model), models.today()
        if card and card.is_shut_down(day) and card.after == "error":
            raise UserError(f"{' '.join(models.notices(settings.model, day))} Set generate.model.")
        read_keys(settings, os.environ)
        cost.max_request_cost(settings)  # a cap needs a price

    @property
    def limits(self) -> Limits:  # type: ignore[override]  # of the configuration, where other stages have constants
        return Limits(self.config.generate.max_tries, self.config.generate.max_asks)

    @cached_property
    def readable(self) -> set[str]:
        """The items whose image was decoded: nobody pays for questions about an image that is not there."""
        return {record.key for record in read_records(self.run_dir.store("validate"), ReadReport()) if record.ok}

    def items(self) -> Iterator[Product]:
        return (product for product in self.read(self.run_dir.products, Product) if product.item_id in self.readable)

    def key(self, item: Product) -> str:
        return item.item_id

    def process(self, todos: Iterator[Todo[Product]]) -> None:
        generate_all(
            todos,
            image_root=self.config.data.image_root,
            settings=self.config.generate,
            ledger=self.run_dir.ledger,
            quota_folder=self.run_dir.stand_in_quota
            if self.config.generate.stand_in
            else self.config.generate.quota_folder,
            batches_folder=self.run_dir.batches,
            stopping=self.stopping,
        )

    def rule_violations(self, reply: Reply) -> str | None:
        return rule_violations(reply, self.config.generate)

    def finish(self, shard: int) -> Spending:
        """Write the shard's CSV, the best reply of each product, and sum what the shard cost."""
        best: dict[str, dataset_csv.CsvRow] = {}
        spent, answered = Spending(), set()
        for record in read_records(self.store, ReadReport(), shard=shard):
            outcome = record.outcome(Reply)
            reply: Reply | None = outcome.value
            if reply is None:
                continue
            spent += Spending(reply.input_tokens, reply.output_tokens, reply.dollars)
            answered.add(record.key)
            pairs = list(check_reply(reply, self.config.generate).pairs) if record.ok else []
            known = best.get(record.key)
            if pairs and (known is None or len(pairs) >= len(known.qas)):
                best[record.key] = dataset_csv.CsvRow(record.key, reply.image_id, pairs)
        dataset_csv.write(self.store.shard(shard) / f"dataset_{shard}.csv", (best[key] for key in sorted(best)))
        return spent + Spending(answered=len(answered))

    def run(self, task: int | None, stop: Callable[[], bool]) -> TaskResult:
        result = super().run(task, stop)
        marker = ShardMarker.read(self.store, task) if task is not None else None
        if marker and marker.spending.answered > marker.done:
            usable = f"{marker.spending.answered:,} answered, {marker.done:,} usable"
            return dataclasses.replace(result, summary=f"{result.summary}: {usable}")
        return result

    def status(self) -> StepStatus:
        status = super().status()
        answered = expected_model(self.run_dir.ledger, fingerprint(self.config.generate))
        if answered and not is_version_of(answered, self.config.generate.model):
            status.notes.append(f"{self.config.generate.model} was asked, and {answered} answered.")
        self._forecast(status)
        if self.config.generate.tier == "batch" and status.state != DONE:
            status.in_batches = products_under_way(self.run_dir.batches)
            status.per_second = status.seconds_left = None  # batches come back when they do
            if status.in_batches:
                status.state = PARTIAL
        return status

    def _forecast(self, status: StepStatus) -> None:
        """What the run was planned to cost, and what it comes to at the present rate."""
        settings, answered = self.config.generate, status.done + status.failed
        if settings.stand_in is not None or not status.items or not answered:
            return
        probe = [
            from_dict(cost.ProductUsage, fields) for fields in (read_json(self.run_dir.probe) or {}).get("products", ())
        ]
        status.planned_dollars = cost.estimate(status.items, settings, probe).dollars
        if status.planned_dollars is None:
            status.notes.append("generate: its price is unknown, so its cost was not counted; set generate.prices.")
        elif status.dollars:
            status.projected_dollars = status.dollars / answered * status.items

    def stop_seconds(self) -> float:
        return self.config.generate.timeout + 15  # a request that was sent is paid: its reply is waited for
