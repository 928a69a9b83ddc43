"""From raw replies to a dataset: parse, check, normalize, drop duplicates, group images, split.

A reply's pair ``{"question": "What color is the mug?", "answer": "Red", "category": "easy"}`` becomes an `Example`::

    {"id": "5f1c…", "item_id": "B0…", "image_id": "61…L", "image_path": "3f/3f9ab012.jpg", "question": "What color is the mug?",
     "answer": "red", "category": "easy", "question_type": "color", "product_type": "MUG", "image_group": "0c1e…"}

Reasons for which a pair is dropped, by the parser or here:

=========================  ============================================================================================
surplus, not_an_object     the reply had more than five pairs, or something that is no pair
no_question                it does not ask anything, or the question is missing
not_one_word               the answer is not one alphabetical English word
answer_in_question         the question gives the answer away
no_category                neither easy, medium nor hard (kept where ``curate.missing_category`` is ``keep``)
duplicate_question         the product has this question already
near_duplicate_question    the product has a question that asks the same in other words
=========================  ============================================================================================

and for which a product is: the reasons of `data_prep.images.decode` (its image cannot be used), ``not_validated`` (validation
has not come to it), ``no_reply``, ``unparsable_reply``, ``no_pair_left``, ``same_image`` (shown by another item already).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_prep.curate.export import export_imagefolder, verify, write_dataset
from data_prep.curate.question_text import (
    asks_something,
    content_words,
    gives_answer_away,
    question_type,
    similarity,
    words_of,
)
from data_prep.curate.splits import SPLITS, assign
from data_prep.curate.stats import describe
from data_prep.generate.qa_parser import QAParseError, QAParser
from data_prep.images.near_duplicates import image_groups
from data_prep.records import Example, ImageFacts, Product, QAPair, Rejected, Reply
from data_prep.settings import CurateSettings

__all__ = ["CuratedDataset", "curate", "export_imagefolder", "verify", "write_dataset"]

Reject = Callable[[Rejected], None]

# Images so close that only compression or scaling tells them apart; what `curate.dhash_bits` groups may be looser.
_SAME_BITS, _SAME_COLOR = 2, 0.4


@dataclass(slots=True)
class CuratedDataset:
    """The rows of each split, what is known about their images, and figures about the whole."""

    train: list[Example]
    val: list[Example]
    test: list[Example]
    pictures: dict[str, ImageFacts]  # by item id
    stats: dict[str, Any]
    settings: CurateSettings

    def splits(self) -> dict[str, list[Example]]:
        """The rows by the split's name."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(slots=True)
class _Counts:
    """Where every product and every pair went."""

    products: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)


def curate(
    products: Iterable[Product],
    facts: Mapping[str, ImageFacts],
    image_failures: Mapping[str, str],
    replies: Iterable[Reply],
    settings: CurateSettings,
    reject: Reject,
    *,
    parser: QAParser | None = None,
) -> CuratedDataset:
    """Build the dataset.

    Args:
        products: what stage prepare kept.
        facts: by item id, of images that can be used.
        image_failures: by item id, the reason why an image cannot be used.
        replies: all that were stored, several of one item included: the one with the most good pairs counts, of equals
            the last.
        settings: rules, normalization and shares.
        reject: called once for each pair and each product that is dropped.
        parser: reads the replies; by default one that follows ``settings.missing_category``.

    Returns:
        Rows in the order of the products. ``stats["pairs"]`` and ``stats["products"]`` add up.
    """
    known = {p.item_id: p for p in products}
    counts = _Counts()
    parser = parser or QAParser(require_category=settings.missing_category == "drop")
    parsed, rejected_pairs, unparsable = _best_replies(replies, known, parser)

    def drop_product(item_id: str, reason: str, detail: str) -> None:
        counts.products[reason] += 1
        reject(Rejected(item_id, reason, f"product: {detail}"))

    def drop_pair(item_id: str, reason: str, detail: str) -> None:
        counts.pairs[reason] += 1
        reject(Rejected(item_id, reason, f"pair: {detail}"[:500]))

    for item_id, dropped in rejected_pairs.items():
        for raw, reason in dropped:
            drop_pair(item_id, reason, str(raw))
    usable: dict[str, list[Example]] = {}
    for product in known.values():
        item_id = product.item_id
        pairs = parsed.pop(item_id, None)
        if item_id in facts and facts[item_id].image_path != product.image_path:
            seen = facts[item_id].image_path
            drop_product(
                item_id, "image_changed", f"validated with {seen}, now {product.image_path}: use another --run-dir"
            )
            for pair in pairs or ():
                drop_pair(item_id, "image_changed", f"{pair.question} -> {pair.answer}")
        elif item_id not in facts:
            reason = image_failures.get(item_id, "not_validated")
            drop_product(item_id, reason, f"image {product.image_path}")
            for pair in pairs or ():
                drop_pair(item_id, reason, f"{pair.question} -> {pair.answer}")
        elif pairs is None:
            drop_product(item_id, *unparsable.get(item_id, ("no_reply", "nothing was generated for it")))
        else:
            rows = _rows(product, pairs, settings, drop_pair)
            if rows:
                usable[item_id] = rows
            else:
                drop_product(item_id, "no_pair_left", "none of its pairs met the rules")
    groups = _groups(usable, facts, settings)
    if settings.same_image == "drop":
        for item_id, kept in _same_images(usable, facts).items():
            drop_product(item_id, "same_image", f"shown by item {kept}")
            for row in usable.pop(item_id):
                drop_pair(item_id, "same_image", f"{row.question} -> {row.answer}")
            del groups[item_id]
    return _assemble(usable, groups, facts, known, settings, counts)


def _best_replies(
    replies: Iterable[Reply], known: Mapping[str, Product], parser: QAParser
) -> tuple[dict[str, list[QAPair]], dict[str, list[tuple[Any, str]]], dict[str, tuple[str, str]]]:
    """By item: the pairs of the reply that counts, what the parser rejected of it, and why others gave nothing at all."""
    pairs: dict[str, list[QAPair]] = {}
    rejected: dict[str, list[tuple[Any, str]]] = {}
    unparsable: dict[str, tuple[str, str]] = {}
    for reply in replies:
        if reply.item_id not in known:
            continue  # an earlier run had chosen more products
        if reply.image_id != known[reply.item_id].image_id:
            detail = f"it was asked about with image {reply.image_id}: use another --run-dir to ask again"
            unparsable.setdefault(reply.item_id, ("image_changed", detail))
            continue
        try:
            found = parser.parse(reply.text or "")
        except QAParseError as error:
            unparsable.setdefault(reply.item_id, ("unparsable_reply", str(error)[:200]))
            continue
        if len(found.pairs) >= len(pairs.get(reply.item_id, ())):
            pairs[reply.item_id] = list(found.pairs)
            rejected[reply.item_id] = [(_writable(raw), reason) for raw, reason in found.rejected]
    return pairs, rejected, unparsable


def _writable(raw: Any) -> str:
    """What a model said, cut short; half a surrogate pair, which JSON can say and UTF-8 cannot, as a question mark."""
    return str(raw)[:300].encode("utf-8", "replace").decode()


def _rows(
    product: Product, pairs: Iterable[QAPair], settings: CurateSettings, drop_pair: Callable[[str, str, str], None]
) -> list[Example]:
    """The pairs of one product that are kept, normalized, as rows that do not know their image group yet."""
    rows: list[Example] = []
    for pair in pairs:
        question = " ".join(pair.question.split())
        answer = pair.answer.strip().lower()
        answer = settings.spelling.get(answer, answer)
        reason = _broken_rule(question, answer, pair.category, settings) or _repeats(question, rows, settings)
        if reason:
            drop_pair(product.item_id, reason, f"{question} -> {answer}")
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
    """The first rule that a pair breaks, or ""."""
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
    """Whether the product has this question already, or one like it."""
    words = words_of(question)
    for row in rows:
        if words_of(row.question) == words:
            return "duplicate_question"
        if content_words(question) and similarity(question, row.question) >= settings.similar_questions:
            return "near_duplicate_question"
    return ""


def _groups(
    usable: Mapping[str, list[Example]], facts: Mapping[str, ImageFacts], settings: CurateSettings
) -> dict[str, str]:
    """Each item's image group, named by the lowest file hash in it, which does not depend on order."""
    items = list(usable)
    found = image_groups(
        [facts[item] for item in items], dhash_bits=settings.dhash_bits, color_distance=settings.color_distance
    )
    name: dict[int, str] = {}
    for item, group in zip(items, found, strict=True):
        name[group] = min(name.get(group, "g"), facts[item].sha256[:16])
    return {item: name[group] for item, group in zip(items, found, strict=True)}


def _same_images(usable: Mapping[str, list[Example]], facts: Mapping[str, ImageFacts]) -> dict[str, str]:
    """Items that show an image which an item with a lower id shows already, and that item."""
    items = sorted(usable)
    found = image_groups([facts[item] for item in items], dhash_bits=_SAME_BITS, color_distance=_SAME_COLOR)
    return {item: items[group] for item, group in zip(items, found, strict=True) if items[group] != item}


def _assemble(
    usable: Mapping[str, list[Example]],
    groups: Mapping[str, str],
    facts: Mapping[str, ImageFacts],
    known: Mapping[str, Product],
    settings: CurateSettings,
    counts: _Counts,
) -> CuratedDataset:
    split_of = assign(groups.values(), val_share=settings.val_share, test_share=settings.test_share, seed=settings.seed)
    rows: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for item_id, examples in usable.items():
        group = groups[item_id]
        for example in examples:
            rows[split_of[group]].append(_in_group(example, group))
    kept = sum(map(len, rows.values()))
    stats: dict[str, Any] = {
        "products": {
            "read": len(known),
            "kept": len(usable),
            "dropped": dict(sorted(counts.products.items())),
        },
        "pairs": {
            "read": kept + counts.pairs.total(),
            "kept": kept,
            "dropped": dict(sorted(counts.pairs.items())),
        },
        **describe(rows, _sizes(groups)),
    }
    pictures = {item_id: facts[item_id] for item_id in usable}
    return CuratedDataset(rows["train"], rows["val"], rows["test"], pictures, stats, settings)


def _in_group(example: Example, group: str) -> Example:
    values = {name: getattr(example, name) for name in Example.__slots__}
    return Example(**{**values, "image_group": group})


def _sizes(groups: Mapping[str, str]) -> list[int]:
    """How many products each image group holds, largest first."""
    members: dict[str, int] = defaultdict(int)
    for group in groups.values():
        members[group] += 1
    return sorted(members.values(), reverse=True)
