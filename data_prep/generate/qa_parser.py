"""Parses a generator's reply, whatever it is wrapped in, and checks every pair.

>>> QAParser().parse('```json\\n[{"question": "What color is the mug?", "answer": "Red.", "category": "easy"}]\\n```').pairs
[QAPair(question='What color is the mug?', answer='red', category='easy')]

A pair is rejected as ``not_an_object``, ``no_question``, ``placeholder_answer`` (the answer says that there is none, or that it
cannot be told), ``not_one_word`` (the answer is not one alphabetical English word), ``no_category`` or ``surplus`` (after the
fifth pair). A reply without an array of pairs raises `QAParseError`; nothing else is
ever raised.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

from data_prep.records import QAPair

PAIRS = 5
CATEGORIES = ("easy", "medium", "hard")
_WORD = re.compile(r"[A-Za-z]{1,30}")
# Of letters only, so "N/A" is "na". Nothing that can be seen is named by one of these: a count of none is "zero", and a cloth
# without a pattern "plain" or "solid". The prompt asks for no such answer. "no" and "neither" answer questions.
_PLACEHOLDERS = frozenset(
    """none nothing unknown unclear unsure uncertain undetermined undeterminable indeterminate unspecified unidentified
    unidentifiable undefined unavailable unreadable illegible indiscernible unanswerable na nan nil null notapplicable
    notavailable notclear notidentifiable notknown notlegible notpresent notprovided notreadable notshown notspecified notsure
    notvisible noanswer noidea cannotanswer cannotbedetermined cannotbeseen cannotdetermine cannotsay cannotsee cannottell
    cantanswer cantbedetermined cantbeseen cantdetermine cantsay cantsee canttell dontknow""".split()  # noqa: SIM905
)
_FENCE = re.compile(r"```[A-Za-z0-9]*")
_MAX_LENGTH = 100_000  # characters: five pairs take about 600


class QAParseError(ValueError):
    """A reply without pairs; ``reason`` is counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """The pairs of a reply."""

    pairs: list[QAPair]
    rejected: list[tuple[Any, str]]  # (raw pair, a JSON value; reason)
    found: int  # pairs in the reply, usable or not

    def violations(self) -> list[str]:
        """The rules that the reply breaks, in words for the model; empty for five good pairs."""
        said = []
        if self.found != PAIRS:
            said.append(f"there were {self.found} pairs instead of {PAIRS}")
        for raw, reason in self.rejected:
            if reason != "surplus":
                said.append(f"{json.dumps(raw)[:200]}: {_RULES[reason]}")
        return said


_RULES = {  # shown to the model
    "not_an_object": "this is not an object with question, answer and category",
    "no_question": "the question is missing or asks nothing",
    "placeholder_answer": "the answer says that there is none or that it cannot be told: ask about something that can be seen",
    "not_one_word": "the answer is not exactly one English word of letters only",
    "no_category": "the category is none of easy, medium, hard",
}


class QAParser:
    """Parser of replies.

    Args:
        require_category: reject pairs without easy, medium or hard; otherwise their category is "".
        most: pairs to take; those after it are surplus. None: all, where nobody was asked for five.
    """

    def __init__(self, *, require_category: bool = True, most: int | None = PAIRS) -> None:
        self.require_category, self.most = require_category, most

    def parse(self, text: str) -> ParsedReply:
        """Find and check the pairs of a reply.

        Raises:
            QAParseError: ``empty``, ``too_long``, ``no_array`` (no JSON array of objects), ``broken_json`` (cut off).
        """
        raw_pairs = find_array(text)
        pairs: list[QAPair] = []
        rejected: list[tuple[Any, str]] = []
        for raw in raw_pairs:
            if len(pairs) == self.most:
                rejected.append((raw, "surplus"))
                continue
            pair, reason = self._check(raw)
            if pair is None:
                rejected.append((raw, reason))
            else:
                pairs.append(pair)
        return ParsedReply(pairs, rejected, len(raw_pairs))

    def _check(self, raw: Any) -> tuple[QAPair | None, str]:
        if not isinstance(raw, dict):
            return None, "not_an_object"
        question = _clean(raw.get("question"))
        if len(re.findall(r"[A-Za-z]+", question)) < 2:
            return None, "no_question"
        answer = _clean(raw.get("answer")).strip("\"'`*.,;:!?() ").lower()
        if re.sub(r"[^a-z]", "", answer) in _PLACEHOLDERS:
            return None, "placeholder_answer"
        if not _WORD.fullmatch(answer):
            return None, "not_one_word"
        category = _clean(raw.get("category")).strip("\"'`*. ").lower()
        if category not in CATEGORIES:
            if self.require_category:
                return None, "no_category"
            category = ""
        return QAPair(question, answer, category), ""


def find_array(text: str) -> list[Any]:
    """The JSON array of a reply: bare, in Markdown fences, amid prose, or inside an object such as ``{"qas": [...]}``.

    Raises:
        QAParseError: there is none.
    """
    if not isinstance(text, str) or not text.strip():
        raise QAParseError("empty")
    if len(text) > _MAX_LENGTH:
        raise QAParseError("too_long", f"{len(text):,} characters")
    stripped = _FENCE.sub(" ", text).strip().lstrip("\ufeff")
    # Prose before the array may hold brackets of its own; 20 attempts keep hostile text from taking quadratic time.
    starts = [stripped] + [stripped[match.start() :] for match in list(re.finditer(r"[\[{]", stripped))[:20]]
    decoder = json.JSONDecoder()
    for start in starts:
        try:
            value, _ = decoder.raw_decode(start)
        except (ValueError, RecursionError):
            continue
        array = _array_in(value)
        if array is not None:
            return array
    reason = "broken_json" if re.search(r"\[\s*\{", stripped) else "no_array"
    raise QAParseError(reason, stripped[:120])


def _array_in(value: Any) -> list[Any] | None:
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return value
    if isinstance(value, dict):
        for child in value.values():
            if isinstance(child, list) and any(isinstance(entry, dict) for entry in child):
                return child
    return None


def _clean(value: Any) -> str:
    """A field as one line of text, without control characters."""
    if not isinstance(value, str):
        return ""
    printable = "".join(c if c.isprintable() else " " for c in value)
    text = " ".join(printable.split())
    try:
        orjson.dumps(text)
    except TypeError:  # lone surrogates, which JSON's escapes can smuggle in, cannot be written
        return ""
    return text
