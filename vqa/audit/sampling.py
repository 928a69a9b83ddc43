"""A stratified random sample of test questions for people to judge.

>>> sample = draw([("5f1c", "color, agreed"), ("77aa", "count, contested"), ...], 200, seed=0)
>>> sample.strata["color, agreed"], sample.ids[:2]
(Stratum(questions=412, drawn=61), ['77aa', '5f1c'])

A stratum is what is known of a question before anybody judges it: its type, and whether the second opinion agreed. Contested
questions are where the errors are expected, so they are drawn `CONTESTED_WEIGHT` times as often; the estimates weight them back.
Within a stratum the choice is a hash of seed and question id: it depends on nothing else, and the same seed gives the same page.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONTESTED = "contested"
CONTESTED_WEIGHT = 3.0
SMALL = 10  # a stratum with fewer questions is pooled with the others of its kind
POOLED = "rare types"


@dataclass(frozen=True, slots=True)
class Stratum:
    """How many questions there are, and how many of them were drawn."""

    questions: int
    drawn: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Which questions were drawn, in the order in which they are to be judged."""

    seed: int
    ids: list[str]  # in random order: whoever stops early has judged a random part
    strata: dict[str, Stratum]
    stratum_of: dict[str, str]  # every test question → its stratum


def stratum(question_type: str, seen: str) -> str:
    """The stratum of a question: its type, and what the second opinion made of it ("" without one)."""
    return f"{question_type}, {seen}" if seen else question_type


def draw(questions: Sequence[tuple[str, str]], count: int, seed: int) -> Sample:
    """Draw a sample.

    Args:
        questions: id and stratum of every test question; ids are unique.
        count: how many to draw; all, where there are no more.
        seed: another seed, another sample.
    """
    stratum_of = _pooled(dict(questions))
    members: dict[str, list[str]] = defaultdict(list)
    for question in sorted(stratum_of, key=lambda q: _place(seed, q)):
        members[stratum_of[question]].append(question)
    drawn = allocate({name: len(ids) for name, ids in members.items()}, count)
    ids = [question for name, ids in members.items() for question in ids[: drawn[name]]]
    return Sample(
        seed=seed,
        ids=sorted(ids, key=lambda q: _place(seed, f"order {q}")),
        strata={name: Stratum(len(members[name]), drawn[name]) for name in sorted(members)},
        stratum_of=stratum_of,
    )


def allocate(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """How many to draw of each stratum: in proportion to size and weight, two at least, never more than it has."""
    count = min(count, sum(sizes.values()))
    weights = {n: size * (CONTESTED_WEIGHT if n.endswith(CONTESTED) else 1.0) for n, size in sizes.items()}
    drawn = dict.fromkeys(sizes, 0)
    # One at a time to the stratum that is furthest below its share (Sainte-Laguë); those below two come first, the largest first.
    for _ in range(count):
        open_ = [name for name, size in sizes.items() if drawn[name] < size]
        needy = [name for name in open_ if drawn[name] < 2]
        chosen = max(needy or open_, key=lambda name: (weights[name] / (2 * drawn[name] + 1), name))
        drawn[chosen] += 1
    return drawn


def _pooled(stratum_of: Mapping[str, str]) -> dict[str, str]:
    sizes: dict[str, int] = defaultdict(int)
    for name in stratum_of.values():
        sizes[name] += 1

    def pooled(name: str) -> str:
        _, comma, seen = name.rpartition(", ")
        return name if sizes[name] >= SMALL else stratum(POOLED, seen if comma else "")

    return {question: pooled(name) for question, name in stratum_of.items()}


def _place(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"audit:{seed}:{name}".encode(), digest_size=8).digest()
