"""From raw replies to a dataset: parse, check, normalize, drop duplicates, split, keep near images apart.

A reply's pair ``{"question": "What color is the mug?", "answer": "Red", "category": "easy"}`` becomes an `Example`::

    {"id": "5f1c…", "item_id": "B0…", "image_id": "61…L", "image_path": "3f/3f9ab012.jpg", "question": "What color is the mug?",
     "answer": "red", "category": "easy", "question_type": "color", "product_type": "MUG"}

Reasons for dropping a pair, found by the parser or here:

=========================  ============================================================================================
surplus                    the reply had more than five pairs
not_an_object              it is not a JSON object
no_question                the question is missing, or does not ask anything
placeholder_answer         the answer is no answer: "none", "unknown", "unclear"
not_one_word               the answer is not one alphabetical English word
answer_in_question         the question gives the answer away
no_category                neither easy, medium nor hard (kept if ``curate.missing_category`` is ``keep``)
duplicate_question         the product already has this question
near_duplicate_question    the product already has a question that asks the same in other words
=========================  ============================================================================================

Reasons for dropping a product; the pairs that it has are dropped for the same reason:

=========================  ============================================================================================
image_broken, …            its image cannot be used; `data_prep.images.decode` lists the reasons
not_validated              validation has not come to its image
duplicate_item             a row of somebody's own CSV has an item that an earlier row shows with another image
image_changed              its main image is not the one that was validated or asked about
no_reply                   nothing was generated for it
unparsable_reply           no array of pairs was found in any reply
no_pair_left               none of its pairs met the rules
same_image                 another item that is kept shows the same image (kept if ``curate.same_image`` is ``keep``)
near_test_image            it would be in train or val, and its image is near one of test
near_val_image             it would be in train, and its image is near one of val
=========================  ============================================================================================
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from data_prep.curate.dataset import CuratedDataset
from data_prep.curate.question_text import (
    asks_something,
    content_words,
    gives_answer_away,
    question_type,
    similarity,
    words_of,
)
from data_prep.curate.splits import SPLITS, near_items, side
from data_prep.curate.stats import Kept, describe
from data_prep.generate.qa_parser import PAIRS, ParsedReply, QAParseError, QAParser
from data_prep.images.near_duplicates import repeats
from data_prep.records import Example, ImageFacts, Product, QAPair, Rejected, Reply
from data_prep.settings import CurateSettings

# At these distances only compression or scaling tells two images apart: they are the same image. The distances of near
# images (`curate.dhash_bits`, `curate.color_distance`) are larger.
_SAME_BITS, _SAME_COLOR = 2, 0.4


def curate(
    products: Iterable[Product],
    facts: Mapping[str, ImageFacts],
    image_failures: Mapping[str, str],
    replies: Iterable[Reply],
    settings: CurateSettings,
    reject: Callable[[Rejected], None],
    most_pairs: int | None = PAIRS,
) -> CuratedDataset:
    """Build the dataset.

    Args:
        products: what the stage prepare kept.
        facts: by item id, of images that can be used.
        image_failures: by item id, the reason why an image cannot be used.
        replies: all that were stored, in order; an item may have several: the one with the most good pairs counts, of
            equals the last.
        settings: rules, normalization and shares.
        reject: called once for each pair and each product that is dropped.
        most_pairs: of a product; None: all.

    Returns:
        Rows in the order of the products. ``stats.pairs`` and ``stats.products`` add up.
    """
    known = {product.item_id: product for product in products}
    parser = QAParser(require_category=settings.missing_category == "drop", most=most_pairs)
    answers = _best_replies(replies, known, parser)
    drops = _Drops(reject)
    usable: dict[str, list[Example]] = {}
    for item_id, product in known.items():
        found = answers.get(item_id, _Answers())
        pairs = found.parsed.pairs if found.parsed else []
        for raw, reason in found.parsed.rejected if found.parsed else []:
            drops.pair(item_id, reason, _writable(raw))
        if problem := _image_problem(product, facts, image_failures):
            drops.product(item_id, *problem, pairs)
        elif not found.parsed:
            drops.product(item_id, *found.problem)
        elif rows := _rows(product, pairs, settings, drops):
            usable[item_id] = rows
            for row in rows:
                row.model_version, row.image_sha256 = found.model_version, facts[item_id].sha256
        else:
            drops.product(item_id, "no_pair_left", "none of its pairs met the rules")
    splits = _split(usable, facts, settings, drops)
    stats = describe(
        splits,
        products=_kept(len(usable), drops.products),
        pairs=_kept(sum(map(len, usable.values())), drops.pairs),
    )
    return CuratedDataset(splits, {item_id: facts[item_id] for item_id in usable}, stats, settings)


class _Drops:
    """Reports and counts what is dropped."""

    def __init__(self, reject: Callable[[Rejected], None]) -> None:
        self._reject = reject
        self.products: Counter[str] = Counter()
        self.pairs: Counter[str] = Counter()

    def pair(self, item_id: str, reason: str, detail: str) -> None:
        self.pairs[reason] += 1
        self._reject(Rejected(item_id, reason, f"pair: {detail}"[:500]))

    def product(self, item_id: str, reason: str, detail: str, pairs: Sequence[QAPair | Example] = ()) -> None:
        """Drop a product, and for the same reason the pairs that it has."""
        self.products[reason] += 1
        self._reject(Rejected(item_id, reason, f"product: {detail}"))
        for pair in pairs:
            self.pair(item_id, reason, f"{pair.question} -> {pair.answer}")


def _kept(kept: int, dropped: Counter[str]) -> Kept:
    return Kept(kept + dropped.total(), kept, dict(sorted(dropped.items())))


@dataclass(slots=True)
class _Answers:
    """What the stored replies about one product gave."""

    parsed: ParsedReply | None = None  # the reply that counts
    model_version: str = ""  # that gave it
    problem: tuple[str, str] = ("no_reply", "nothing was generated for it")  # without one: the reason, and its detail


def _best_replies(replies: Iterable[Reply], known: Mapping[str, Product], parser: QAParser) -> dict[str, _Answers]:
    found: dict[str, _Answers] = defaultdict(_Answers)
    for reply in replies:
        product = known.get(reply.item_id)
        if product is None:
            continue  # an earlier run had chosen more products
        answers = found[reply.item_id]
        if reply.image_id != product.image_id:
            detail = f"it was asked about with image {reply.image_id}: launch generate again"
            answers.problem = ("image_changed", detail)
            continue
        try:
            parsed = parser.parse(reply.text or "")
        except QAParseError as error:
            answers.problem = ("unparsable_reply", str(error)[:200])
            continue
        if answers.parsed is None or len(parsed.pairs) >= len(answers.parsed.pairs):
            answers.parsed, answers.model_version = parsed, reply.model_version
    return found


def _image_problem(
    product: Product, facts: Mapping[str, ImageFacts], failures: Mapping[str, str]
) -> tuple[str, str] | None:
    """Why a product's image cannot be used: the reason and its detail."""
    image = facts.get(product.item_id)
    if image is None:
        return failures.get(product.item_id, "not_validated"), f"image {product.image_path}"
    if image.image_path != product.image_path:
        detail = f"validated with {image.image_path}, now {product.image_path}: launch validate again"
        return "image_changed", detail
    return None


def _writable(raw: object) -> str:
    """Cut the model's words short, and replace what UTF-8 cannot encode: JSON may contain half a surrogate pair."""
    return str(raw)[:300].encode("utf-8", "replace").decode()


def _rows(product: Product, pairs: Sequence[QAPair], settings: CurateSettings, drops: _Drops) -> list[Example]:
    """Normalize a product's pairs and drop those that break a rule."""
    rows: list[Example] = []
    for pair in pairs:
        question = " ".join(pair.question.split())
        answer = pair.answer.strip().lower()
        answer = settings.spelling.get(answer, answer)
        reason = _broken_rule(question, answer, pair.category, settings) or _repeats(question, rows, settings)
        if reason:
            drops.pair(product.item_id, reason, f"{question} -> {answer}")
            continue
        key = f"{product.item_id}\n{' '.join(words_of(question))}"
        rows.append(
            Example(
                id=hashlib.sha256(key.encode()).hexdigest()[:16],
                item_id=product.item_id,
                image_id=product.image_id,
                image_path=product.image_path,
                question=question,
                answer=answer,
                category=pair.category,
                question_type=question_type(question, answer),
                product_type=product.product_type,
            )
        )
    return rows


def _broken_rule(question: str, answer: str, category: str, settings: CurateSettings) -> str:
    """The reason to drop a pair for what it says, or ""."""
    if not asks_something(question):
        return "no_question"
    if not (answer.isascii() and answer.isalpha()):
        return "not_one_word"
    if gives_answer_away(question, answer):
        return "answer_in_question"
    if not category and settings.missing_category == "drop":
        return "no_category"
    return ""


def _repeats(question: str, rows: list[Example], settings: CurateSettings) -> str:
    """The reason to drop a question that the product already has in the same or other words, or ""."""
    words = words_of(question)
    for row in rows:
        if words_of(row.question) == words:
            return "duplicate_question"
        if content_words(question) and similarity(question, row.question) >= settings.similar_questions:
            return "near_duplicate_question"
    return ""


def _split(
    usable: dict[str, list[Example]], facts: Mapping[str, ImageFacts], settings: CurateSettings, drops: _Drops
) -> dict[str, list[Example]]:
    """Divide the products, and drop from ``usable`` those whose image is the same as or near one that is kept.

    What is in test depends on nothing in train and val, and what is in val on nothing in train.
    """
    items: dict[str, list[str]] = {name: [] for name in SPLITS}
    for item_id, rows in usable.items():
        image_id = rows[0].image_id
        name = side(image_id, val_share=settings.val_share, test_share=settings.test_share, seed=settings.seed)
        items[name].append(item_id)

    def drop(found: Mapping[str, str], reason: str, detail: str) -> None:
        for item_id, like in found.items():
            drops.product(item_id, reason, detail.format(like), usable.pop(item_id))

    if settings.same_image == "drop":
        order = [item for name in reversed(SPLITS) for item in sorted(items[name])]
        drop(_same_images(order, facts), "same_image", "shown by item {}")
    for kept, droppable, reason in (
        ("test", ("train", "val"), "near_test_image"),
        ("val", ("train",), "near_val_image"),
    ):
        asked = [item for name in droppable for item in items[name] if item in usable]
        others = [item for item in items[kept] if item in usable]
        near = near_items(asked, others, facts, dhash_bits=settings.dhash_bits, color_distance=settings.color_distance)
        drop(near, reason, "nearly equal to the image of item {}, which is in " + kept)
    return {name: [row for item in part if item in usable for row in usable[item]] for name, part in items.items()}


def _same_images(items: Sequence[str], facts: Mapping[str, ImageFacts]) -> dict[str, str]:
    """Items that show the same image as a kept one before them, and that one."""
    found = repeats([facts[item] for item in items], dhash_bits=_SAME_BITS, color_distance=_SAME_COLOR)
    return {item: items[index] for item, index in zip(items, found, strict=True) if index is not None}
