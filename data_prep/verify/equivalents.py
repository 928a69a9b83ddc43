"""Whether two one-word answers are the same answer: what every second opinion is compared by.

>>> same_answer("Grey", "gray"), same_answer("buttons", "button"), same_answer("four", "4"), same_answer("navy", "blue")
(True, True, True, False)

Scores of models do not use this: they stay exact matches after the normalization, comparable with those of others.
"""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

from data_prep.curate.question_text import singular
from data_prep.normalize import normalize

EQUIVALENTS_FILE = Path(__file__).parent / "equivalents.yaml"


def same_answer(one: str, other: str) -> bool:
    """Whether both are equal after `canonical`; an empty answer equals nothing."""
    return bool(one.strip()) and canonical(one) == canonical(other)


@functools.lru_cache(maxsize=65_536)
def canonical(answer: str) -> str:
    """An answer normalized, each word in the singular and replaced by the first word of its group in equivalents.yaml."""
    words = (singular(word) for word in normalize(answer).split())
    return " ".join(_first_of_group().get(word, word) for word in words)


@functools.cache
def _first_of_group() -> dict[str, str]:
    found: dict[str, str] = {}
    for group in yaml.safe_load(EQUIVALENTS_FILE.read_text(encoding="utf-8")):
        for word in group["words"]:
            key = singular(normalize(word))
            assert key not in found, f"{EQUIVALENTS_FILE.name}: {word} is in two groups"
            found[key] = group["words"][0]
    return found
