"""``launch.py self-consistency``: ask about a sample of products a second time, and compare. Paid like the first time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from data_prep.files import write_json
from data_prep.outcomes import UserError
from data_prep.records import Product, QAPair
from data_prep.verify.self_consistency import SelfConsistency, self_consistency
from jobs.backends.stop import StopFlag
from jobs.config import Config
from jobs.run.layout import RunDir, ShardStore
from jobs.run.run import load_run
from jobs.shards.loop import run_shard
from jobs.shards.store import freeze_shards
from jobs.stages.generate import Generate
from jobs.verbs.launch import sole_writer


class AskedTwice(Generate):
    """Generate again for a sample, into a store of its own, under the same quota and cap."""

    def __init__(self, run: RunDir, config: Config, products: int) -> None:
        one_by_one = config.generate.model_copy(update={"tier": "standard"})
        super().__init__(run, config.model_copy(update={"generate": one_by_one}))
        self._products = products

    @property
    def store(self) -> ShardStore:
        return self.run_dir.asked_twice

    @property
    def batches(self) -> Path | None:
        return None  # their replies are first ones

    @cached_property
    def first(self) -> dict[str, list[QAPair]]:
        """The pairs of the first time, by item id."""
        return _pairs(Generate(self.run_dir, self.config))

    def items(self) -> Iterator[Product]:
        """The same sample every time: those whose ids have the lowest digests."""
        chosen = set(sorted(self.first, key=lambda item: hashlib.sha256(item.encode()).digest())[: self._products])
        return (product for product in super().items() if product.item_id in chosen)

    def may_redo(self) -> bool:
        return True  # the verb says that it pays again


def ask_twice(run_dir: Path, products: int, console: Console) -> int:
    """Ask, compare, print, and write 3_generate/self_consistency.json, which the report shows; the exit code.

    Raises:
        UserError: no run, nothing generated yet, no key, no budget, or another command writes into the run.
    """
    with sole_writer(RunDir(run_dir.resolve()).require()):
        run, config = load_run(run_dir)
        stage = AskedTwice(run, config, products)
        if not stage.first:
            raise UserError(f"{run_dir} has no questions to ask a second time yet: run its stage generate first.")
        stop = StopFlag().install()
        stage.stopping = stop
        freeze_shards(stage.store, 1)
        result = run_shard(stage, 0, 1, stop)
        if result.remaining:
            console.print(f"stopped with {result.remaining:,} products to ask about; the same command again goes on")
            return 1
        found = self_consistency(stage.first, _pairs(stage), config.curate.similar_questions)
        write_json(run.self_consistency, found)
    _show(found, result.failed, config, console)
    console.print(f"It is in {escape(str(run.self_consistency))}; launch.py report {escape(str(run_dir))} shows it.")
    return 0


def _pairs(stage: Generate) -> dict[str, list[QAPair]]:
    return {row.item_id: row.qas for row in stage.best_pairs()}


def _show(found: SelfConsistency, failed: int, config: Config, console: Console) -> None:
    console.print(f"{found.products:,} products were asked about twice ({failed:,} failed the second time).")
    share = found.same_answer_share
    console.print(
        f"Of {found.questions:,} questions {found.asked_both_times:,} came both times; "
        + (f"{found.same_answer:,} of these ({share:.1%}) got the same answer." if share is not None else "none.")
    )
    for item, question, before, after in found.different_answers:
        console.print(f"  {item}: {question} {before} / {after}", markup=False)
    if config.generate.stand_in:
        console.print(
            "A stand-in answered. It always says the same, so this shows that the verb works, and nothing else."
        )
