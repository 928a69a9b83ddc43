"""The parser: what it accepts, and that nothing makes it raise anything but its own error or accept a bad pair."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.generate.qa_parser import PAIRS, QAParseError, QAParser

GOOD = [{"question": f"What color is part {w}?", "answer": "red", "category": "easy"} for w in "abcde"]
TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"```json\n{TEXT}\n```",
        f"Here you are [as asked]:\n```\n{TEXT}\n```\nAnything else?",
        json.dumps({"qas": GOOD}),
        json.dumps({"note": ["x"], "questions": GOOD}, indent=2),
    ],
)
def test_five_pairs_are_found_whatever_they_are_wrapped_in(text: str) -> None:
    parsed = QAParser().parse(text)
    assert len(parsed.pairs) == PAIRS and not parsed.violations()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "light blue"}, "not_one_word"),
        ({"answer": "4"}, "not_one_word"),
        ({"answer": "t-shirt"}, "not_one_word"),
        ({"answer": "größe"}, "not_one_word"),
        ({"answer": None}, "not_one_word"),
        ({"question": ""}, "no_question"),
        ({"category": "trivial"}, "no_category"),
    ],
)
def test_a_pair_that_breaks_a_rule_is_rejected_with_its_reason(change: dict, reason: str) -> None:
    parsed = QAParser().parse(json.dumps([*GOOD[:4], GOOD[4] | change]))
    assert len(parsed.pairs) == 4
    assert [why for _, why in parsed.rejected] == [reason] and parsed.violations()


@pytest.mark.parametrize(
    "answer",
    [
        "unknown",
        "None.",
        "Nothing",
        "unclear",
        "N/A",
        "n.a.",
        "not visible",
        "Unsure",
        "cannot tell",
        "can't tell",
        "NULL",
    ],
)
def test_a_placeholder_is_no_answer_and_the_model_is_told_so(answer: str) -> None:
    parsed = QAParser().parse(json.dumps([*GOOD[:4], GOOD[4] | {"answer": answer}]))
    assert [why for _, why in parsed.rejected] == ["placeholder_answer"]
    assert "ask about something that can be seen" in parsed.violations()[0]


@pytest.mark.parametrize("answer", ["no", "zero", "plain", "solid", "neither", "hidden", "invisible", "transparent"])
def test_a_word_for_what_is_seen_is_an_answer_also_where_something_is_lacking(answer: str) -> None:
    assert QAParser().parse(json.dumps([*GOOD[:4], GOOD[4] | {"answer": answer}])).violations() == []


def test_four_and_six_pairs_are_complained_about() -> None:
    assert "4 pairs" in QAParser().parse(json.dumps(GOOD[:4])).violations()[0]
    six = QAParser().parse(json.dumps([*GOOD, GOOD[0]]))
    assert len(six.pairs) == PAIRS and "6 pairs" in six.violations()[0]


@pytest.mark.parametrize("text", ["", "no", "[]", TEXT[:-40], "<html></html>", "[" * 5000, "null", '{"a": 1}'])
def test_a_reply_without_pairs_raises_the_parsers_own_error(text: str) -> None:
    with pytest.raises(QAParseError):
        QAParser().parse(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda children: (
        st.lists(children, max_size=6)
        | st.dictionaries(st.sampled_from(["question", "answer", "category", "qas", "x"]), children, max_size=4)
    ),
    max_leaves=12,
)
_PAIR = st.fixed_dictionaries(
    {},
    optional={
        "question": st.text(max_size=20) | st.just("What color is it?") | _JSON,
        "answer": st.text(max_size=8) | st.sampled_from(["red", " Red. ", "light blue", "\ud800"]) | _JSON,
        "category": st.sampled_from(["easy", "Hard", "none", ""]) | _JSON,
    },
)
_WHOLE = st.lists(_PAIR | _JSON, max_size=8).map(json.dumps) | _JSON.map(json.dumps) | st.text(max_size=60)


@st.composite
def malformed(draw: st.DrawFn) -> str:
    """A reply that was cut, wrapped, or had a piece replaced."""
    text = draw(_WHOLE)
    start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    kind = draw(st.sampled_from(["whole", "cut", "replaced", "fenced", "prose"]))
    return {
        "whole": text,
        "cut": text[:end],
        "replaced": text[:start] + draw(st.text(max_size=4)) + text[end:],
        "fenced": f"```json\n{text}\n```",
        "prose": f"Sure [1] {{here}}: {text}",
    }[kind]


def check_malformed(text: str, require: bool) -> None:
    try:
        parsed = QAParser(require_category=require).parse(text)
    except QAParseError as error:
        assert re.fullmatch(r"[a-z_]+", error.reason)
        return
    assert len(parsed.pairs) <= PAIRS
    assert len(parsed.pairs) + len(parsed.rejected) == parsed.found
    for pair in parsed.pairs:
        assert re.fullmatch("[a-z]+", pair.answer)
        assert re.search("[A-Za-z]", pair.question) and "\n" not in pair.question
        assert pair.category in (("easy", "medium", "hard") if require else ("easy", "medium", "hard", ""))
    json.dumps([pair.question for pair in parsed.pairs]).encode()


_HOW = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@settings(_HOW, max_examples=1_000)
@given(malformed(), st.booleans())
def test_no_malformed_reply_raises_anything_else_or_gets_a_bad_pair_through(text: str, require: bool) -> None:
    check_malformed(text, require)


@pytest.mark.slow
@settings(_HOW, max_examples=10_000)
@given(malformed(), st.booleans())
def test_ten_thousand_malformed_replies(text: str, require: bool) -> None:
    check_malformed(text, require)


def test_of_the_real_answers_those_of_more_than_one_word_are_rejected_for_that() -> None:
    sample = Path(os.environ.get("ABO_SAMPLE", Path(__file__).parents[4] / "shared" / "abo_sample"))
    if not sample.is_dir():
        pytest.skip(f"the ABO sample is not at {sample}")
    parser = QAParser(require_category=False)
    reasons = [
        reason
        for line in (sample / "gemini_answers.jsonl").read_text().splitlines()
        for _, reason in parser.parse(json.dumps(json.loads(line)["qas"])).rejected
    ]
    assert Counter(reasons) == {"not_one_word": 33, "placeholder_answer": 3}  # two are "nothing", one "none"
