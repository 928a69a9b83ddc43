"""The listing's own fields as a witness: asked about the whole product only, and silent where it does not know."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.witness import lines, questions
from data_prep.records import Product
from data_prep.verify.witness import ask
from tests.conftest import SAMPLE

SHOE = Product(
    "B01", "i", "a.jpg", "bourge men's red running shoes", "SHOES", "navy", ["shoe"], "polyester", "striped", "round"
)


@pytest.mark.parametrize(
    ("question", "answer", "verdict"),
    [
        ("What is the main color of the shoe?", "navy", "agrees"),
        ("What color are the shoes?", "blue", "agrees"),  # a near synonym
        ("Which color do the shoes have?", "red", "differs"),
        ("What is the shoe's primary colour in the image?", "green", "differs"),
        ("What is the product made of?", "fabric", "agrees"),  # polyester is one
        ("What material is the shoe made of?", "leather", "differs"),
        ("What pattern does the shoe have?", "stripes", "agrees"),
        ("What is the shape of the item?", "circular", "agrees"),
    ],
)
def test_it_agrees_or_differs_about_the_whole_product(question: str, answer: str, verdict: str) -> None:
    assert ask(question, answer, SHOE).verdict == verdict


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("What color are the laces?", "white", "not_the_whole"),
        ("What color is the sole of the shoe?", "white", "not_the_whole"),
        ("What is the color of the stripe on the shoe?", "white", "not_the_whole"),
        ("What is the color of the shoe's heel?", "white", "not_the_whole"),
        ("What is the color of the sofa?", "white", "not_the_whole"),  # it is in the photo; the listing sells shoes
        ("What is the secondary color of the shoe?", "white", "no_field"),
        ("How many laces are there?", "two", "no_field"),
        ("What is the main color of the shoe?", "python", "not_understood"),
    ],
)
def test_it_is_silent_about_parts_and_what_it_does_not_understand(question: str, answer: str, why: str) -> None:
    found = ask(question, answer, SHOE)
    assert (found.verdict, found.why) == ("silent", why)


def test_a_part_is_the_whole_where_it_is_what_is_sold() -> None:
    board = Product("B02", "i", "a.jpg", "king headboard", "HEADBOARD", "gray", [])
    bed = Product("B03", "i", "a.jpg", "bed with headboard", "BED", "gray", [])
    assert ask("What color is the headboard?", "brown", board).verdict == "differs"
    assert ask("What color is the headboard?", "brown", bed).verdict == "silent"


def test_several_colors_contradict_no_main_color() -> None:
    case = Product("B04", "i", "a.jpg", "phone case", "PHONE_CASE", "multicolor", [])
    assert ask("What is the main color of the phone case?", "black", case).why == "not_understood"
    assert ask("What is the main color of the phone case?", "colorful", case).verdict == "agrees"
    assert ask("What is the main color of the product?", "black", Product(*["x"] * 6, [])).verdict == "silent"
    assert ask("What is the main color of the product?", "black", Product(*["x"] * 5, "", [])).why == "nothing_stated"


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no real slice on this machine")
def test_on_real_answers_it_hears_two_in_five_color_questions_and_few_differ() -> None:
    asked = questions(SAMPLE)
    said = Counter(ask(a.question, a.answer, a.product).verdict for a in asked if a.question_type == "color")
    assert said.total() > 2_000
    assert said["agrees"] + said["differs"] > 0.4 * said.total()
    assert 0 < said["differs"] < 0.06 * said["agrees"]
    assert sum(line.startswith("  ") for line in lines(asked)) > said["differs"]
