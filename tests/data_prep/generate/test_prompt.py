"""What a request says about a product, and what it must not give away."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest

from data_prep.generate.prompt import PROMPT_FILE, check_reply, identity, make_request, prompt
from data_prep.generate.qa_parser import QAParser
from data_prep.generate.settings import GenerateSettings
from data_prep.images.decode import ImageProblem
from data_prep.records import Product, Reply

PRODUCT = Product(
    item_id="B1",
    image_id="I1",
    image_path="1.jpg",
    name="Heavy grey-blue oak stool with striped cushions",
    product_type="STOOL_SEATING",
    color="Gray, Blue",
    keywords=["oak bar stool", "Grey", "blues music", "round top", "brushed chrome feet", "kitchen"],
    material="Oak Wood",
    pattern="Striped",
    shape="Round",
    finish="Brushed, Chrome",
)


def shown(how: str, product: Product = PRODUCT) -> str:
    return prompt(product, GenerateSettings(show_listing=how))


def test_no_request_is_made_about_an_image_that_changed_after_it_was_validated(tmp_path: Path) -> None:
    (tmp_path / PRODUCT.image_path).write_bytes(b"another image")
    validated = dataclasses.replace(PRODUCT, image_sha256=hashlib.sha256(b"the image").hexdigest())
    with pytest.raises(ImageProblem, match=r"image_changed: 1\.jpg"):
        make_request(validated, [], tmp_path, GenerateSettings())
    (tmp_path / PRODUCT.image_path).write_bytes(b"the image")
    assert make_request(validated, [], tmp_path, GenerateSettings()).image == b"the image"


def test_by_default_the_keywords_are_shown_without_the_words_of_the_witness_fields() -> None:
    (line,) = re.findall(r"^- keywords: .*$", shown("keywords"), re.M)
    assert line == "- keywords: bar stool, music, top, feet, kitchen"
    assert GenerateSettings().show_listing == "keywords"


@pytest.mark.parametrize("how", ["none", "keywords", "all"])
def test_no_way_of_showing_the_listing_gives_a_witness_word_away(how: str) -> None:
    said = shown(how).partition("Write exactly")[0].casefold()
    assert not re.search(r"\b(gr[ae]ys?|blues?|oak|wood|striped|round|brushed|chrome)\b", said)
    assert ("stool" in said) == (how != "none") and ("seating" in said) == (how == "all")


def test_a_listing_of_nothing_but_witness_words_is_not_shown_at_all() -> None:
    assert "keywords" not in shown("keywords", dataclasses.replace(PRODUCT, keywords=["Grey", "oak wood"]))


def test_what_is_shown_of_the_listing_is_part_of_the_identity() -> None:
    assert identity(GenerateSettings()) != identity(GenerateSettings(show_listing="all"))


def test_the_examples_of_the_prompt_are_good_pairs_of_different_kinds() -> None:
    text = PROMPT_FILE.read_text().replace("{{", "{").replace("}}", "}")
    examples = json.loads(re.search(r"\[\{.*\}\]", text, re.S)[0])  # type: ignore[index]
    parser = QAParser()
    assert (
        len(parser.parse(json.dumps(examples[:5])).pairs) == 5
        and len(parser.parse(json.dumps(examples[5:])).pairs) == 1
    )
    questions = " ".join(example["question"] for example in examples)
    assert all(questions.count(kind) == 1 for kind in ("color", "material", "shape", "How many"))
    assert sum(example["answer"] in ("yes", "no") for example in examples) == 1
    assert not re.search(r"colour|grey\b", text)


@pytest.mark.parametrize(
    ("text", "finish", "thoughts", "problem"),
    [
        ("", "MAX_TOKENS", 4096, "eaten_by_thoughts"),
        ("", "MAX_TOKENS", 0, "cut_off"),
        ('[{"question": "What color is', "MAX_TOKENS", 3000, "cut_off"),
        ("", "STOP", 0, "empty"),
        ("I cannot see an image.", "STOP", 0, "no_array"),
        ('[{"question": "What color is it?", "answer": "light blue", "category": "easy"}]', "STOP", 0, "no_valid_pair"),
        ('[{"question": "What color is it?", "answer": "blue", "category": "easy"}]', "STOP", 0, ""),
        ('[{"question": "What color is it?", "answer": "blue", "category": "easy"}]', "MAX_TOKENS", 9, ""),
    ],
)
def test_a_reply_is_usable_with_one_valid_pair_and_else_has_its_own_reason(text, finish, thoughts, problem) -> None:
    reply = Reply("B1", "I1", text, finish, "m", 1, thoughts, 0.0, thought_tokens=thoughts)
    checked = check_reply(reply, GenerateSettings())
    assert checked.problem == problem and checked.violations  # it is asked again in any case
