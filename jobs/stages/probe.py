"""A few real requests before a run, to measure what a product takes. The replies are the run's own: nothing is paid twice."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from functools import cached_property

from data_prep.abo import listings
from data_prep.generate.cost import ProductUsage
from data_prep.images.decode import ImageProblem
from data_prep.images.locate import locator
from data_prep.images.validate import image_facts
from data_prep.outcomes import Ok
from data_prep.records import Product, Rejected, Reply
from jobs.config import Config
from jobs.run.layout import RunDir
from jobs.shards.digest import digest
from jobs.shards.journal import ReadReport
from jobs.shards.loop import run_shard
from jobs.shards.progress import Progress, made_of
from jobs.shards.store import freeze_shards, frozen_shards, read_records, shard_of
from jobs.stages.generate import Generate


class Probe(Generate):
    """Generate for a sample of products, into the records of 3_generate, where the stage finds them."""

    def __init__(self, run: RunDir, config: Config, products: int) -> None:
        # Single requests: a batch of twenty may take a day, and takes as many tokens.
        generate = config.generate.model_copy(update={"tier": "flex" if config.generate.tier == "flex" else "standard"})
        super().__init__(run, config.model_copy(update={"generate": generate}))
        self._products = products

    @cached_property
    def sample(self) -> list[Product]:
        """The same products every time: of those whose image can be used, the ones whose ids have the lowest digests."""

        def ignore(_: Rejected) -> None:
            pass

        qualifying = listings.prepare(listings.find_sources(self.config.data), self.config.prepare, ignore)
        ordered = sorted(qualifying, key=lambda item: hashlib.sha256(item.item_id.encode()).digest())
        return list(itertools.islice(filter(None, map(self._validated, ordered)), self._products))

    def _validated(self, product: Product) -> Product | None:
        """Validation may not have run yet, and a request about a broken image measures nothing."""
        try:
            facts = image_facts(product, locator(self.config.data.image_root), self.config.validate_)
        except ImageProblem:
            return None
        return dataclasses.replace(product, image_sha256=facts.sha256)

    def may_redo(self) -> bool:
        return True  # the user agrees to each probe

    def items(self) -> Iterator[Product]:
        return iter(self.sample)

    def ask(self, stop: Callable[[], bool]) -> bool:
        """Ask about the products that have no answer yet; whether all were tried.

        Raises:
            UserError: no request can succeed now.
        """
        self.stopping, shards = stop, self.shards()
        freeze_shards(self.store, shards)
        remaining = 0
        for shard in sorted({shard_of(item.item_id, shards) for item in self.sample}):
            remaining += run_shard(self, shard, shards, stop).remaining
            self.store.done(shard).unlink(missing_ok=True)  # it vouches for the sample alone
        return remaining == 0

    def usage(self) -> list[ProductUsage]:
        """What each product of the sample took that the server billed anything for."""
        found: dict[str, ProductUsage] = {}
        progress = Progress(self, digest(self.settings("")), made_of(self))
        for record in read_records(self.store, ReadReport()) if frozen_shards(self.store) else ():
            outcome = record.outcome(Reply)
            reply: Reply | None = outcome.value
            if reply is not None and progress.counts(record):
                found[record.key] = found.get(record.key, ProductUsage()) + ProductUsage(
                    1,
                    reply.input_tokens,
                    reply.output_tokens,
                    reply.thought_tokens,
                    usable=isinstance(outcome, Ok),
                )
        return list(found.values())
