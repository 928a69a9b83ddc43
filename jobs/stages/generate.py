"""Stage 3: ask for five one-word questions about every product whose image can be used. The only stage that costs money."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from data_prep import dataset_csv
from data_prep.files import read_json
from data_prep.generate import cost
from data_prep.generate.batch_state import batches_spent, handed_in, products_under_way
from data_prep.generate.dispatcher import require_askable
from data_prep.generate.prompt import FiveQuestions, check_reply, identity, rule_violations, shown_listing
from data_prep.generate.quota.answering_model import expected_model, is_version_of
from data_prep.generate.quota.spending import requests_spent
from data_prep.generate.workers import generate_all
from data_prep.outcomes import Todo, UserError
from data_prep.records import ImageFacts, Product, Reply, from_dict
from jobs.run.contents import file_identity
from jobs.run.layout import ShardStore, Step
from jobs.shards.digest import differences, digest, text_digest
from jobs.shards.journal import ReadReport
from jobs.shards.marker import Finished, ShardMarker, Spending
from jobs.shards.progress import Limits, Progress, made_of, stored_records
from jobs.shards.store import read_records
from jobs.stages.base import ShardedStage, TaskResult, outputs_digest
from jobs.stages.status import DONE, PARTIAL, StepStatus, is_complete, spending_of, spent_on
from jobs.stages.validate import Validate, images_digest, validated_images
from jobs.stages.verify import Verify

_CENT = 0.01


class Generate(ShardedStage[Product]):
    """Writes 3_generate: every raw reply, before anything parses it; dataset_<shard>.csv when a shard is done."""

    name = "generate"
    value_type = Reply
    paid = True
    other_content = "products were asked about with another image or listing"

    def shards(self) -> int:
        return self.config.generate.shards

    def input_is_there(self) -> bool:
        return self.run_dir.products.is_file() and is_complete(Validate(self.run_dir, self.config))

    @property
    def store(self) -> ShardStore:
        """Where the replies go."""
        return self.run_dir.store("generate")

    @property
    def batches(self) -> Path | None:
        """Where batches are handed in; None: replies from batches are not this stage's."""
        return self.run_dir.batches

    def stores(self) -> Mapping[str, ShardStore]:
        return {"": self.store}

    def settings(self, variant: str) -> Mapping[str, object]:
        return identity(self.config.generate, self._answers)

    @property
    def _answers(self) -> str:
        """The SHA-256 of the stand-in's answers; "" without one. The run knows it when the file is gone."""
        stand_in = self.config.generate.stand_in
        return file_identity(self.run_dir, stand_in.answers) if stand_in else ""

    def check_settings(self, *, redo: bool) -> None:
        super().check_settings(redo=redo)
        self._check_ledger()
        settings = self.config.generate
        if settings.stand_in is not None or (self.input_is_there() and not self.unfinished()):
            return
        require_askable(settings, os.environ)

    def _check_ledger(self) -> None:
        """Check that no reply which was paid for would be forgotten.

        Raises:
            UserError: batches were handed in under other settings, and not all of their replies are recorded.
        """
        folder, settings = self.run_dir.stage_folder("generate"), self.settings("")
        if (folder / "quota").exists() or (folder / "batches").exists():
            raise UserError(
                f"{self.run_dir.path} was made by an older version, which kept its money in {folder}. Finish it with that "
                f"version, or use another --run-dir."
            )
        others = [batch for batch in handed_in(self.run_dir.batches) if batch.intent.settings != settings]
        if not others:
            return
        records = read_records(self.run_dir.store("generate"), ReadReport())
        replies = Counter(record.key for record in records if record.value)
        products = {key for batch in others for key in batch.unrecorded(replies)}
        if products:
            waiting = [batch for batch in others if batch.unrecorded(replies)]
            dollars = sum(batch.intent.reserved if batch.paid is None else batch.paid for batch in waiting)
            raise UserError(
                f"{len(products):,} products are in batches that were handed in under other settings "
                f"({'; '.join(differences(waiting[0].intent.settings, settings))}). They cost up to ${dollars:.2f}, and their "
                f"replies would be lost. Restore the setting and launch again until they are recorded, or use another --run-dir."
            )

    @property
    def limits(self) -> Limits:  # type: ignore[override]  # of the configuration, where other stages have constants
        return Limits(self.config.generate.max_tries, self.config.generate.max_asks)

    @cached_property
    def _images(self) -> dict[str, ImageFacts]:
        """By item, images that were decoded: nobody pays for questions about an image that is not there."""
        return {item: facts for item, facts in validated_images(self.run_dir) if isinstance(facts, ImageFacts)}

    def items(self) -> Iterator[Product]:
        for product in self.read(self.run_dir.products, Product):
            image = self._images.get(product.item_id)
            if image and (image.image_id, image.image_path) == (product.image_id, product.image_path):
                yield dataclasses.replace(product, image_sha256=image.sha256)

    def input_digest(self) -> str:
        return digest([outputs_digest(self.run_dir, Step("prepare")), images_digest(self.run_dir)])

    def made_from(self, item: Product) -> str:
        return text_digest(item.image_sha256, shown_listing(item, self.config.generate))

    def key(self, item: Product) -> str:
        return item.item_id

    def redo_cost(self, items: int) -> str:
        planned = cost.estimate(items, self.config.generate)
        if planned.dollars is None or planned.at_most is None:
            return "at a price that is not known"
        return f"for about ${planned.dollars:,.2f}, at most ${planned.at_most:,.2f}"

    @property
    def _prompter(self) -> FiveQuestions:
        return FiveQuestions(self.config.generate, self.config.data.image_root)

    def process(self, todos: Iterator[Todo[Product]]) -> None:
        generate_all(
            todos,
            image_root=self.config.data.image_root,
            settings=self.config.generate,
            ledger=self.run_dir.ledger,
            quota_folder=self.run_dir.stand_in_quota
            if self.config.generate.stand_in
            else self.config.generate.quota_folder,
            batches_folder=self.batches,
            stopping=self.stopping,
        )

    def rule_violations(self, reply: Reply) -> str | None:
        return rule_violations(reply, self.config.generate)

    def replies(self, made: Mapping[str, str] | None = None, shard: int | None = None) -> Iterator[Reply]:
        """The replies that count, those included that are of no use: a better parser may find a pair in one.

        Args:
            made: the products in question, and what each is asked about with; all without it.
            shard: look at its folder alone where its products' replies can lie nowhere else.
        """
        progress = Progress(self, digest(self.settings("")), made_of(self) if made is None else made)
        for record in stored_records(self, "", ReadReport(), shard):
            if progress.counts(record) and record.value is not None and (record.ok or record.retry):
                yield from_dict(Reply, record.value)

    def best_pairs(self, made: Mapping[str, str] | None = None, shard: int | None = None) -> list[dataset_csv.CsvRow]:
        """Of each product the reply with most good pairs, of equals the last; arguments as for `replies`."""
        best: dict[str, dataset_csv.CsvRow] = {}
        for reply in self.replies(made, shard):
            pairs, known = list(check_reply(reply, self.config.generate).pairs), best.get(reply.item_id)
            if pairs and (known is None or len(pairs) >= len(known.qas)):
                best[reply.item_id] = dataset_csv.CsvRow(reply.item_id, reply.image_id, pairs)
        return [best[item] for item in sorted(best)]

    def finish(self, shard: int, made: Mapping[str, str]) -> Finished:
        """Write the shard's CSV, the best reply of each product, and sum what the replies in its folder cost."""
        path = self.store.dataset_csv(shard)
        dataset_csv.write(path, self.best_pairs(made, shard))
        paid = (record.value for record in read_records(self.store, ReadReport(), shard=shard) if record.value)
        return Finished(sum(map(spent_on, paid), Spending()), [path])

    def run(self, task: int | None, stop: Callable[[], bool]) -> TaskResult:
        result = super().run(task, stop)
        marker = ShardMarker.read(self.store, task) if task is not None else None
        if marker and marker.answered > marker.done:
            usable = f"{marker.answered:,} answered, {marker.done:,} usable"
            return dataclasses.replace(result, summary=f"{result.summary}: {usable}")
        return result

    def status(self) -> StepStatus:
        status = super().status()
        answered = expected_model(self.run_dir.ledger, digest(self.settings("")))
        if answered and not is_version_of(answered, self.config.generate.model):
            status.notes.append(f"{self.config.generate.model} was asked, and {answered} answered.")
        self._forecast(status)
        spent = requests_spent(self.run_dir.ledger) + batches_spent(self.run_dir.batches)
        spent += batches_spent(self.run_dir.verify_batches)
        kept = status.dollars + sum(spending_of(one).dollars for one in Verify(self.run_dir, self.config).sources())
        if spent.paid > kept + _CENT:
            status.notes.append(
                f"generate: ${spent.paid:,.2f} were paid in all. Replies among the records cost ${kept:,.2f}; the rest "
                f"went to replies that were deleted, lost or asked for on the side."
            )
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
