"""What curate keeps, drops and counts; and the files of a dataset."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from PIL import Image

from data_prep.abo import listings
from data_prep.curate import curate
from data_prep.curate.blind_floor import BlindFloor, blind_answers, blind_floor
from data_prep.curate.card import card
from data_prep.curate.dataset import CuratedDataset, verify, write_dataset
from data_prep.curate.question_text import asks_something, gives_answer_away, question_type, similarity
from data_prep.curate.stats import Kept
from data_prep.outcomes import Failed, Ok, UserError
from data_prep.records import Example, ImageFacts, Product, Rejected, Reply, Teacher
from data_prep.settings import CurateSettings, DataSettings, PrepareSettings
from tests.data_prep.conftest import jpeg, validated

PAIRS = [
    {"question": "What color is the mug?", "answer": "Red", "category": "easy"},
    {"question": "How many mugs are there?", "answer": "two", "category": "easy"},
    {"question": "What material is the handle made of?", "answer": "wood", "category": "medium"},
    {"question": "What shape is the base?", "answer": "round", "category": "hard"},
    {"question": "Is the mug striped?", "answer": "no", "category": "medium"},
]


def product(number: int, kind: str = "MUG") -> Product:
    return Product(f"B{number:04}", f"i{number}", f"aa/i{number}.jpg", "a mug", kind, "red", ["mug"])


def facts_of(number: int, **changes: Any) -> ImageFacts:
    """Facts of an image that is like no other."""
    rng = random.Random(number)
    values = {
        "image_id": f"i{number}",
        "image_path": f"aa/i{number}.jpg",
        "sha256": f"{rng.getrandbits(256):064x}",
        "width": 256,
        "height": 256,
        "format": "JPEG",
        "dhash": f"{rng.getrandbits(64):016x}",
        "colors": rng.randbytes(48).hex(),
        **changes,
    }
    return ImageFacts(**values)


def reply(number: int, pairs: list[dict[str, str]] | str) -> Reply:
    text = pairs if isinstance(pairs, str) else json.dumps(pairs)
    return Reply(f"B{number:04}", f"i{number}", text, "STOP", "m", 1, 1, 0.0)


def run(
    pairs: dict[int, list[dict[str, str]] | str],
    changes: dict[int, dict[str, Any]] | None = None,
    **options: Any,
) -> tuple[CuratedDataset, list[Rejected]]:
    """Curate products 0 to the highest number of ``pairs``."""
    numbers = range(max(pairs) + 1)
    rejected: list[Rejected] = []
    dataset = curate.curate(
        [product(n) for n in numbers],
        {f"B{n:04}": facts_of(n, **(changes or {}).get(n, {})) for n in numbers},
        {},
        [reply(n, p) for n, p in pairs.items()],
        CurateSettings(**options),
        rejected.append,
    )
    return dataset, rejected


def rows(dataset: CuratedDataset) -> list[Example]:
    return [row for part in dataset.splits.values() for row in part]


def with_pair(**changes: str) -> list[dict[str, str]]:
    return [{**PAIRS[0], **changes}, *PAIRS[1:]]


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (with_pair(answer="light blue"), "not_one_word"),
        (with_pair(answer="3"), "not_one_word"),
        (with_pair(answer="None"), "placeholder_answer"),
        (with_pair(answer="größe"), "not_one_word"),
        (with_pair(category=""), "no_category"),
        (with_pair(question="The mug."), "no_question"),
        (with_pair(question="Describe the red mug"), "no_question"),
        (with_pair(question="What color is the red mug?"), "answer_in_question"),
        (with_pair(question="how many MUGS are there"), "duplicate_question"),
        (with_pair(question="Which material is the handle made from?"), "near_duplicate_question"),
    ],
)
def test_a_pair_that_breaks_a_rule_is_dropped_with_its_reason(pairs, reason) -> None:
    dataset, rejected = run({0: pairs})
    assert [r.reason for r in rejected] == [reason]
    assert len(rows(dataset)) == 4
    assert dataset.stats.pairs == Kept(5, 4, {reason: 1})


def test_a_row_has_every_field_and_a_lower_case_answer() -> None:
    dataset, rejected = run({0: PAIRS})
    row = rows(dataset)[0]
    assert not rejected
    assert (row.question, row.answer, row.category, row.question_type) == (
        "What color is the mug?",
        "red",
        "easy",
        "color",
    )
    assert (row.item_id, row.image_id, row.image_path, row.product_type) == ("B0000", "i0", "aa/i0.jpg", "MUG")
    assert len({r.id for r in rows(dataset)}) == 5


def test_spelling_and_missing_categories_follow_the_configuration() -> None:
    pairs = with_pair(answer="Grey", category="")
    assert rows(run({0: pairs}, missing_category="keep")[0])[0].answer == "grey"
    row = rows(run({0: pairs}, missing_category="keep", spelling={"grey": "gray"})[0])[0]
    assert (row.answer, row.category) == ("gray", "")
    with pytest.raises(ValueError, match="itself respelled"):
        CurateSettings(spelling={"grey": "gray", "gray": "grey"})


def test_products_without_a_usable_image_or_reply_are_counted() -> None:
    rejected: list[Rejected] = []
    dataset = curate.curate(
        [product(n) for n in range(6)],
        {f"B{n:04}": facts_of(n) for n in (0, 1, 2, 3)},
        {"B0004": "image_truncated"},
        [reply(0, PAIRS), reply(1, "sorry"), reply(2, with_pair(answer="3")[:1]), reply(4, PAIRS), reply(99, PAIRS)],
        CurateSettings(),
        rejected.append,
    )
    dropped = {"image_truncated": 1, "no_pair_left": 1, "no_reply": 1, "not_validated": 1, "unparsable_reply": 1}
    assert dataset.stats.products == Kept(6, 1, dropped)
    assert dataset.stats.pairs == Kept(11, 5, {"image_truncated": 5, "not_one_word": 1})
    assert len(rejected) == 5 + 6


def test_questions_about_another_image_than_the_products_are_never_joined_to_it() -> None:
    rejected: list[Rejected] = []
    asked = dataclasses.replace(reply(1, PAIRS), image_id="i7")  # before the product's main image was another one
    dataset = curate.curate(
        [product(n) for n in range(3)],
        {f"B{n:04}": facts_of(n, **({"image_path": "aa/i9.jpg"} if n == 2 else {})) for n in range(3)},
        {},
        [reply(0, PAIRS), asked, reply(2, PAIRS)],
        CurateSettings(),
        rejected.append,
    )
    assert {row.item_id for row in rows(dataset)} == {"B0000"}
    assert dataset.stats.products.dropped == {"image_changed": 2}
    assert {r.item_id for r in rejected if "again" in r.detail} == {"B0001", "B0002"}


def test_half_a_surrogate_pair_in_a_reply_can_be_written_down() -> None:
    _, rejected = run({0: json.dumps([*PAIRS, "\ud83d cut"])})
    assert any("? cut" in r.detail for r in rejected) and all(r.detail.encode() for r in rejected)


def test_of_several_replies_the_one_with_most_good_pairs_counts() -> None:
    rejected: list[Rejected] = []
    replies = [reply(0, PAIRS[:2]), reply(0, PAIRS), reply(0, "broken"), reply(0, PAIRS[:3])]
    dataset = curate.curate([product(0)], {"B0000": facts_of(0)}, {}, replies, CurateSettings(), rejected.append)
    assert (len(rows(dataset)), rejected) == (5, [])


def test_what_two_model_versions_answered_is_kept_apart_in_rows_figures_and_card() -> None:
    numbers, rejected = range(20), []
    dataset = curate.curate(
        [product(n) for n in numbers],
        {f"B{n:04}": facts_of(n) for n in numbers},
        {},
        [dataclasses.replace(reply(n, PAIRS), model_version="old-1" if n < 12 else "new-2") for n in numbers],
        CurateSettings(),
        rejected.append,
    )
    of_item = {row.item_id: row.model_version for row in rows(dataset)}
    assert of_item["B0003"] == "old-1" and of_item["B0015"] == "new-2"
    answered = dataset.stats.model_versions
    assert {version: part.products for version, part in answered.items()} == {"old-1": 12, "new-2": 8}
    text = card(dataset.stats, dataset.settings, Teacher("m"))
    assert f"| old-1 | {answered['old-1'].questions} | 12 |" in text and "| new-2 |" in text


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("How many buttons are visible", "four", "count"),
        ("What colour are the laces", "white", "color"),
        ("What is the shape of the lens", "round", "shape"),
        ("What material is the strap made of", "leather", "material"),
        ("What pattern is on the rug", "floral", "pattern"),
        ("Is the box open", "yes", "yes/no"),
        ("What type of product is this", "mug", "object"),
        ("What word is printed on the mug", "love", "text"),
        ("What is the style of the chair", "modern", "style"),
        ("What brand is the shoe", "puma", "brand"),
        ("What is the product used for", "cooking", "function"),
        ("What is attached to the top", "hammock", "other"),
    ],
)
def test_the_type_of_a_question_follows_from_its_words(question: str, answer: str, expected: str) -> None:
    assert question_type(question, answer) == expected


def test_questions_are_judged_and_compared_by_their_words() -> None:
    assert asks_something("Besides the strap, what is blue")
    assert not asks_something("Blue mug with two handles")
    assert gives_answer_away("How many hearts' shapes are there", "heart")
    assert not gives_answer_away("Is the table round or square", "round")
    assert not gives_answer_away("What color is the tablecloth", "table")
    assert similarity("What is the main color of the mug", "Which colour does the mug have?") == 1.0
    assert similarity("What does the picture of the mug show", "What does the mug show") == 1.0
    assert similarity("What color is the handle", "What color is the lid") < 0.5
    assert similarity("How many handles", "What handles") == 0.0
    assert similarity("How is the bag closed", "How are the bags closed?") == 1.0


def test_where_what_whether_and_how_many_are_four_questions_about_one_part() -> None:
    asked = ["Where is the logo", "What is the logo", "Is there a logo", "How many logos are there"]
    answers = ["sleeve", "cat", "yes", "two"]
    pairs = [{"question": q, "answer": a, "category": "easy"} for q, a in zip(asked, answers, strict=True)]
    dataset, rejected = run({0: pairs})
    assert ([row.question for row in rows(dataset)], rejected) == (asked, [])
    again = [{**pairs[2], "question": "Does it have a logo"}, {**pairs[1], "question": "Which logo is shown"}]
    dataset, rejected = run({0: [*pairs[1:3], *again]})
    assert [r.reason for r in rejected] == ["near_duplicate_question"] * 2 and len(rows(dataset)) == 2


def test_a_dataset_is_written_whole_and_verified(tmp_path: Path) -> None:
    (tmp_path / "images/aa").mkdir(parents=True)
    for number in range(40):
        (tmp_path / f"images/aa/i{number}.jpg").write_bytes(jpeg())
    dataset, _ = run(dict.fromkeys(range(40), PAIRS))
    folder = tmp_path / "4_curate"
    write_dataset(dataset, folder, image_root=tmp_path / "images", teacher=Teacher("gemini-x", stand_in=True))
    assert verify(folder) == []
    with Image.open(folder / "samples.jpg") as sheet:
        assert sheet.format == "JPEG"
    text = (folder / "README.md").read_text()
    for words in ("Made with the stand-in", "CC BY 4.0", "gemini-x", "exact match", "200 questions about 40"):
        assert words in text
    generated = card(dataset.stats, dataset.settings, Teacher("gemini-x", terms=["Read the terms."]))
    assert "generated by gemini-x" in generated and "stand-in" not in generated and "- Read the terms." in generated
    row = orjson.loads((folder / "train.jsonl").read_bytes().splitlines()[0])
    assert {"image_path", "question", "answer", "id", "item_id", "image_id", "category", "question_type"} <= row.keys()
    assert orjson.loads((folder / "stats.json").read_bytes()) == orjson.loads(orjson.dumps(dataset.stats))


def test_verify_of_something_else_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no curated dataset"):
        verify(tmp_path)


def test_the_blind_floor_is_what_guessing_from_the_question_scores() -> None:
    def example(number: int, question: str, answer: str) -> Example:
        return Example(str(number), str(number), "", "", question, answer, "", question_type(question, answer), "MUG")

    train = [example(n, "What color is the mug", "red" if n < 6 else "blue") for n in range(10)]
    train += [example(20 + n, "How many handles are there", "one") for n in range(3)]
    test = [
        example(40, "What color is the mug", "red"),  # the same words
        example(41, "What color is the lamp", "blue"),  # only the type has been seen
        example(42, "How many handles are there", "one"),
        example(43, "Where is it", "kitchen"),
    ]
    floor = blind_floor(train, test)
    assert blind_answers(train, test) == ["red", "red", "one", "red"]
    assert floor == BlindFloor(0.5, {"color": 0.5, "count": 1.0, "position": 0.0})
    assert blind_answers([], test) == [""] * 4


def test_on_the_real_sample_33_answers_are_not_one_word_and_nothing_leaks(sample: Path, tmp_path: Path) -> None:
    sources = listings.find_sources(DataSettings(root=sample))
    products = list(listings.prepare(sources, PrepareSettings(), lambda rejected: None))
    outcomes = validated(products, sources.image_root)
    facts = {key: outcome.value for key, outcome in outcomes.items() if isinstance(outcome, Ok)}
    failures = {key: outcome.reason for key, outcome in outcomes.items() if isinstance(outcome, Failed)}
    answers = {}
    with (sample / "gemini_answers.jsonl").open() as lines:
        for line in lines:
            answer = json.loads(line)
            answers[answer["image_id"]] = json.dumps(answer["qas"])
    replies = [
        Reply(p.item_id, p.image_id, answers[p.image_id], "STOP", "m", 1, 1, 0.0)
        for p in products
        if p.item_id in facts
    ]
    rejected: list[Rejected] = []
    dataset = curate.curate(
        products, facts, failures, replies, CurateSettings(missing_category="keep"), rejected.append
    )
    counts = dataset.stats.pairs
    assert (counts.dropped["not_one_word"], counts.dropped["placeholder_answer"]) == (33, 3)
    assert (dataset.stats.products.dropped["near_test_image"], dataset.stats.products.dropped["near_val_image"]) == (
        7,
        2,
    )
    assert (counts.dropped["near_test_image"], counts.dropped["near_val_image"]) == (35, 10)  # as docs/abo.md says
    assert counts.read == 5 * len(replies) == counts.kept + sum(counts.dropped.values())
    assert len(rejected) == sum(counts.dropped.values()) + sum(dataset.stats.products.dropped.values())
    write_dataset(dataset, tmp_path, image_root=sources.image_root, teacher=Teacher("Gemini"))
    assert verify(tmp_path) == []
