"""The control asks a fixed sample about images that are wrong, and never about one that is as right."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, defaultdict

from data_prep.records import Example
from vqa.evaluation.control import GRAY, sample, with_gray, with_other_images

COLORS = ("red", "blue", "green", "white", "black", "pink")


def split(products: int, kinds: tuple[str, ...] = ("LAMP", "MUG", "RUG")) -> list[Example]:
    """Three questions about each product: its color, its count of parts, and what it is."""
    asked = {
        "color": "What color is it?",
        "count": "How many parts are there?",
        "object": "What kind of product is it?",
    }
    draw = random.Random(0)
    return [
        Example(f"{p}-{q}", f"p{p}", f"i{p}", f"{p}.jpg", asked[kind], answer, "", kind, kinds[p % len(kinds)])
        for p in range(products)
        for q, (kind, answer) in enumerate(
            (
                ("color", draw.choice(COLORS)),
                ("count", draw.choice("123456")),
                ("object", kinds[p % len(kinds)].lower()),
            )
        )
    ]


def test_the_sample_is_of_whole_images_and_does_not_depend_on_order() -> None:
    rows = split(60)
    chosen = sample(rows, 50)
    assert 50 <= len(chosen) <= 52
    assert set(Counter(e.image_id for e in chosen).values()) == {3}
    assert {e.id for e in sample(rows[::-1], 50)} == {e.id for e in chosen}
    assert {e.id for e in chosen} < {e.id for e in sample(rows, 80)}, "a larger sample contains the smaller one"
    assert len(sample(rows, 1000)) == 180 and sample(rows, 0) == []


def test_no_product_keeps_its_image_and_most_get_one_of_their_own_type() -> None:
    rows = split(60)
    own, by_path = {e.id: e for e in rows}, {e.image_path: e for e in rows}
    asked = with_other_images(rows, rows)
    assert {e.id for e in asked} == own.keys()
    shown = {e.id: by_path[e.image_path] for e in asked}
    assert all(shown[e.id].image_id != own[e.id].image_id for e in asked)
    assert all(e.image_id == shown[e.id].image_id for e in asked), "the record says which image was shown"
    colors = [e for e in asked if e.question_type == "color"]
    assert all(shown[e.id].product_type == e.product_type for e in colors)


def test_an_image_for_which_the_answer_is_as_right_is_passed_over() -> None:
    rows = split(60)
    answers: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for e in rows:
        answers[e.image_path].add((e.question_type, e.answer))
    asked = with_other_images(rows, rows)
    assert not [e for e in asked if (e.question_type, e.answer) in answers[e.image_path]]
    lamps = {e.image_path for e in rows if e.product_type == "LAMP"}
    objects = [e for e in asked if e.answer == "lamp"]
    assert objects and not [e for e in objects if e.image_path in lamps], "all lamps are lamps"


def test_the_only_product_of_a_type_gets_the_image_of_another_type() -> None:
    rows = split(4, kinds=("LAMP", "MUG", "RUG", "SOFA"))
    for asked, own in zip(sorted(with_other_images(rows, rows), key=lambda e: e.id), rows, strict=True):
        assert asked.id == own.id and asked.image_path != own.image_path


def test_one_photo_of_two_products_does_not_stand_in_for_itself() -> None:
    rows = []
    for e in split(12, kinds=("MUG",)):
        photo = int(e.item_id[1:]) // 2
        rows.append(dataclasses.replace(e, image_id=f"i{photo}", image_path=f"{photo}.jpg"))
    own = {e.id: e.image_path for e in rows}
    assert all(e.image_path != own[e.id] for e in with_other_images(rows, rows))


def test_without_another_image_nothing_is_asked_and_a_gray_one_is_no_file() -> None:
    rows = split(1)
    assert with_other_images(rows, rows) == []
    assert {e.image_path for e in with_gray(rows)} == {GRAY} and "\0" in GRAY
    assert [e.id for e in with_gray(rows)] == [e.id for e in rows]
