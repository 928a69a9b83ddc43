"""What the listings of a real slice of ABO say about the answers that Gemini gave, with no model and no request.

``python -m benchmarks.witness ../shared/abo_sample`` prints the witness's verdicts on the color questions with what disagrees, and
beside them how many of the same questions a guesser answers who never sees an image (from the other four fifths of the products).
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_prep.abo.listings import find_sources, prepare
from data_prep.curate.blind_floor import blind_answers
from data_prep.curate.question_text import question_type, words_of
from data_prep.records import Product
from data_prep.settings import DataSettings, PrepareSettings
from data_prep.verify.equivalents import canonical, same_answer
from data_prep.verify.witness import Testimony, ask

FOLDS = 5


@dataclass(frozen=True)
class Asked:
    """One question of the slice, as `blind_answers` reads it, with its product."""

    question: str
    answer: str
    question_type: str
    product: Product


def questions(slice_folder: Path) -> list[Asked]:
    """Every stored question about a listed product."""
    sources = find_sources(DataSettings(root=slice_folder))
    products = {p.image_id: p for p in prepare(sources, PrepareSettings(), lambda rejected: None)}
    rows = map(orjson.loads, (slice_folder / "gemini_answers.jsonl").read_bytes().splitlines())
    return [
        Asked(qa["question"], answer, question_type(qa["question"], answer), products[row["image_id"]])
        for row in rows
        if row["image_id"] in products
        for qa in row["qas"]
        for answer in [qa["answer"].strip().lower()]
    ]


def blind(asked: Sequence[Asked]) -> dict[int, str]:
    """Index of each question → what a guesser says who knows the other folds' questions and answers."""
    fold = [int(hashlib.sha256(a.product.item_id.encode()).hexdigest(), 16) % FOLDS for a in asked]
    found: dict[int, str] = {}
    for held in range(FOLDS):
        inside = [i for i in range(len(asked)) if fold[i] == held]
        train = [a for i, a in enumerate(asked) if fold[i] != held]
        guesses = blind_answers(train, [asked[i] for i in inside])  # type: ignore[arg-type]  # reads these fields alone
        found |= dict(zip(inside, guesses, strict=True))
    return found


def lines(asked: Sequence[Asked]) -> Iterator[str]:
    """The printed table."""
    said: dict[int, Testimony] = {i: ask(a.question, a.answer, a.product) for i, a in enumerate(asked)}
    colors = [i for i, a in enumerate(asked) if a.question_type == "color"]
    guess = blind(asked)
    yield f"{len(asked):,} questions about {len({a.product.item_id for a in asked}):,} products; {len(colors):,} ask for a color"
    told = Counter((said[i].verdict, said[i].why) for i in colors)
    for (verdict, why), count in told.most_common():
        yield f"  {verdict:8} {why:16} {count:5,}  {count / len(colors):6.1%}"
    groups = defaultdict(list)
    for i in colors:
        groups[said[i].verdict].append(i)
        if said[i].verdict != "silent":
            groups["agrees or differs"].append(i)
        groups["all color questions"].append(i)
    yield "of each: answered right blind; answer is a word of the listing's color; of the listing's name"
    for name, inside in groups.items():
        blind_right = sum(same_answer(guess[i], asked[i].answer) for i in inside)
        listed = sum(_in(asked[i].answer, asked[i].product.color) for i in inside)
        named = sum(_in(asked[i].answer, asked[i].product.name) for i in inside)
        yield f"  {name:20} {len(inside):5,}  " + "  ".join(
            f"{n / len(inside):6.1%}" for n in (blind_right, listed, named)
        )
    yield "what differs"
    for i in colors:
        if said[i].verdict == "differs":
            a = asked[i]
            yield f"  {a.product.color} | {a.answer} | {a.question} | {a.product.product_type} | {a.product.image_path}"


def _in(answer: str, text: str) -> bool:
    return canonical(answer) in {canonical(word) for word in words_of(text)}


if __name__ == "__main__":
    print(*lines(questions(Path(sys.argv[1]))), sep="\n")
