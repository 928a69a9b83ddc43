"""Stage 5: second opinions about the curated questions, with the image and without it. Off unless ``verify.enabled`` asks for it.

Raw replies are kept in records of their own, as generate keeps them; `opinions` joins them with the questions by id. Nothing is
written into the dataset, and no question is left out.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence

from data_prep.files import read_jsonl
from data_prep.generate import cost
from data_prep.generate.batch_state import products_under_way
from data_prep.generate.dispatcher import require_askable
from data_prep.generate.workers import ask_all
from data_prep.outcomes import Todo
from data_prep.records import Example, Opinions, Product, Reply, from_dict
from data_prep.verify.equivalents import same_answer
from data_prep.verify.second_opinion import Quiz, SecondOpinion, answers, blind_quizzes, quizzes
from data_prep.verify.witness import ask
from jobs.config import Config
from jobs.run.contents import file_identity
from jobs.run.layout import RunDir, ShardStore, Step
from jobs.shards.digest import digest, text_digest
from jobs.shards.journal import ReadReport
from jobs.shards.marker import Finished, Spending
from jobs.shards.progress import Limits, Progress, ShardSource, made_of, stored_records
from jobs.shards.store import read_records
from jobs.stages.base import ShardedStage, StageMarker
from jobs.stages.status import DONE, PARTIAL, StepStatus, sharded_status, spent_on

SEEN, BLIND = "seen", "blind"
UNKNOWN = Opinions()
_QUESTIONS = 5  # of a product, as the generator is asked for
# Tokens: the prompts' own text, a question with its number, an answer as JSON. A test compares them with the files.
_PROMPT, _PER_QUESTION, _PER_ANSWER = 130, 14, 12


class Verify(ShardedStage[Quiz]):
    """Writes 5_verify/seen, a reply a product with its image; and 5_verify/blind, one for many products without images."""

    name = "verify"
    value_type = Reply
    paid = True
    other_content = "products' questions or images changed since a second opinion was asked"
    kind = SEEN

    def shards(self) -> int:
        return self.config.verify.shards

    def input_is_there(self) -> bool:
        return StageMarker.read(self.run_dir, Step("curate")) is not None

    def sources(self) -> Sequence[ShardSource[Quiz]]:
        return [self, Blind(self)]

    def stores(self) -> Mapping[str, ShardStore]:
        return {"": self.run_dir.opinions(SEEN)}

    @property
    def prompter(self) -> SecondOpinion:
        """What is asked."""
        return self.prompter_of(with_image=True)

    def prompter_of(self, *, with_image: bool) -> SecondOpinion:
        """What is asked with or without the image."""
        settings, stand_in = self.config.verify, self.config.verify.stand_in
        answers = file_identity(self.run_dir, stand_in.answers) if stand_in else ""  # known when the file is gone
        return SecondOpinion(settings, self.config.data.image_root, with_image=with_image, answers=answers)

    def settings(self, variant: str) -> Mapping[str, object]:
        return self.prompter.identity()

    def check_settings(self, *, redo: bool) -> None:
        super().check_settings(redo=redo)
        if self.config.verify.stand_in is None and not (self.input_is_there() and not self.unfinished()):
            require_askable(self.config.verify, os.environ)

    @property
    def limits(self) -> Limits:  # type: ignore[override]  # of the configuration, where other stages have constants
        return Limits(self.config.verify.max_tries, self.config.verify.max_asks)

    def rows(self) -> Iterator[Example]:
        """The questions that a second opinion is asked about."""
        for split in ("test",) if self.config.verify.split == "test" else ("train", "val", "test"):
            yield from self.read(self.run_dir.split(split), Example)

    def items(self) -> Iterator[Quiz]:
        return quizzes(self.rows())

    def input_digest(self) -> str:
        curate = StageMarker.read(self.run_dir, Step("curate"))
        return digest([self.config.verify.split, self.config.verify.blind_products, curate.outputs if curate else {}])

    def made_from(self, item: Quiz) -> str:
        return text_digest(item.image_sha256, *(part for question in item.questions for part in question))

    def key(self, item: Quiz) -> str:
        return item.item_id

    def redo_cost(self, items: int) -> str:
        planned = cost.estimate(items, self.config.verify, shape=seen_shape())
        return "at a price that is not known" if planned.dollars is None else f"for about ${planned.dollars:,.2f}"

    def process(self, todos: Iterator[Todo[Quiz]]) -> None:
        self.ask(todos, self.prompter)

    def ask(self, todos: Iterator[Todo[Quiz]], prompter: SecondOpinion) -> None:
        """Ask, under the run's cap and the projects' quota."""
        settings = self.config.verify
        ask_all(
            todos,
            prompter,
            ledger=self.run_dir.ledger,
            quota_folder=self.run_dir.stand_in_quota if settings.stand_in else settings.quota_folder,
            batches_folder=self.run_dir.verify_batches,
            stopping=self.stopping,
        )

    @functools.cached_property
    def _quizzes(self) -> dict[str, Quiz]:
        return {quiz.item_id: quiz for quiz in self.items()}

    def rule_violations(self, reply: Reply) -> str | None:
        quiz = self._quizzes.get(reply.item_id)
        return self.prompter.violations(quiz, reply) if quiz else None

    def finish(self, shard: int, made: Mapping[str, str]) -> Finished:
        return Finished(spent_in(self, shard))

    def status(self) -> StepStatus:
        status = super().status()
        if status.state == DONE:
            blind = sharded_status(Blind(self), self.step, input_is_there=True)
            if blind.state != DONE:
                status.state = PARTIAL
                status.notes.append(f"verify: {blind.remaining or 0:,} requests without image are not done yet.")
        if self.config.verify.tier == "batch" and status.state != DONE:
            status.in_batches = products_under_way(self.run_dir.verify_batches)
        spent = sum((spent_in(Blind(self), shard) for shard in range(self.shards())), Spending())
        status.input_tokens += spent.input_tokens
        status.output_tokens += spent.output_tokens
        status.dollars += spent.dollars
        return status

    def stop_seconds(self) -> float:
        return self.config.verify.timeout + 15  # a request that was sent is paid: its reply is waited for


class Blind(ShardSource[Quiz]):
    """The same questions without images, those of many products in a request."""

    value_type = Reply
    paid = True
    other_content = "requests without image held other questions"

    def __init__(self, stage: Verify) -> None:
        self._stage = stage
        self.prompter = stage.prompter_of(with_image=False)

    def stores(self) -> Mapping[str, ShardStore]:
        return {"": self._stage.run_dir.opinions(BLIND)}

    def settings(self, variant: str) -> Mapping[str, object]:
        return self.prompter.identity()

    @property
    def limits(self) -> Limits:  # type: ignore[override]
        return self._stage.limits

    def may_redo(self) -> bool:
        return self._stage.may_redo()

    def redo_cost(self, items: int) -> str:
        settings = self._stage.config.verify
        planned = cost.estimate(items, settings, shape=blind_shape(settings.blind_products))
        return "at a price that is not known" if planned.dollars is None else f"for about ${planned.dollars:,.2f}"

    def items(self) -> Iterator[Quiz]:
        return blind_quizzes(self._stage.rows(), self._stage.config.verify.blind_products)

    def input_digest(self) -> str:
        return self._stage.input_digest()

    def made_from(self, item: Quiz) -> str:
        return self._stage.made_from(item)

    def key(self, item: Quiz) -> str:
        return item.item_id

    def process(self, todos: Iterator[Todo[Quiz]]) -> None:
        self._stage.ask(todos, self.prompter)

    @functools.cached_property
    def _quizzes(self) -> dict[str, Quiz]:
        return {quiz.item_id: quiz for quiz in self.items()}

    def rule_violations(self, reply: Reply) -> str | None:
        quiz = self._quizzes.get(reply.item_id)
        return self.prompter.violations(quiz, reply) if quiz else None

    def finish(self, shard: int, made: Mapping[str, str]) -> Finished:
        return Finished(spent_in(self, shard))


def spent_in(source: ShardSource[Quiz], shard: int) -> Spending:
    """What the replies in a shard's folder cost, made from whatever."""
    records = read_records(source.stores()[""], ReadReport(), shard=shard)
    return sum((spent_on(record.value) for record in records if record.value), Spending())


def words_of_opinions(source: ShardSource[Quiz]) -> dict[str, str]:
    """Question id → what the model answered, of the replies that count: about the present questions, image and settings."""
    quizzes_by_key = {source.key(quiz): quiz for quiz in source.items()}
    progress = Progress(source, digest(source.settings("")), made_of(source))
    found: dict[str, str] = {}
    for record in stored_records(source, "", ReadReport()):
        if progress.counts(record) and record.ok and record.value is not None:
            for question, word in answers(quizzes_by_key[record.key], from_dict(Reply, record.value)).items():
                found.setdefault(question, word)
    return found


def opinions(run: RunDir, config: Config, rows: Sequence[Example]) -> dict[str, Opinions]:
    """Everybody's opinion of every row, by question id. An opinion about another image or other words does not count."""
    verify = Verify(run, config)
    heard = config.verify.enabled and verify.input_is_there()
    seen, blind = (words_of_opinions(source) if heard else {} for source in verify.sources())
    wanted = {row.item_id for row in rows}
    listed = read_jsonl(run.products, Product) if run.products.is_file() else iter(())
    products = {product.item_id: product for product in listed if product.item_id in wanted}
    return {row.id: _opinion(row, products.get(row.item_id), seen.get(row.id), blind.get(row.id)) for row in rows}


def _opinion(row: Example, product: Product | None, seen: str | None, blind: str | None) -> Opinions:
    said = ask(row.question, row.answer, product) if product else None
    return Opinions(
        seen=UNKNOWN.seen if seen is None else "agreed" if same_answer(row.answer, seen) else "contested",
        blind=UNKNOWN.blind if blind is None else "right" if same_answer(row.answer, blind) else "wrong",
        witness=said.verdict if said else UNKNOWN.witness,
        seen_answer=seen or "",
        blind_answer=blind or "",
        listing=said.says if said and said.verdict != UNKNOWN.witness else "",
    )


def seen_shape() -> cost.RequestShape:
    """What a request with an image takes."""
    return cost.RequestShape(_PROMPT + _QUESTIONS * _PER_QUESTION, _QUESTIONS * _PER_ANSWER)


def blind_shape(products: int) -> cost.RequestShape:
    """What a request without an image takes."""
    questions = products * _QUESTIONS
    return cost.RequestShape(_PROMPT + questions * _PER_QUESTION + 4 * products, questions * _PER_ANSWER, image=False)
