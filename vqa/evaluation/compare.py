"""A leaderboard of any number of models, paired, on the questions that all of them answered.

>>> compare([entry_a, entry_b]).standings[0].exact_match.mean   # the best
0.693

Questions are joined by id where all entries have ids and share some, else by image and question. Every entry but one, the
reference, is compared with the reference on the same questions: interval by the paired cluster bootstrap, p by `sign_flip`,
corrected by `holm` over the entries. A reference that was chosen for being the best of them is flattered by that choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from data_prep.curate.question_text import question_type
from data_prep.normalize import normalize
from data_prep.outcomes import UserError, unknown_name
from data_prep.records import Answered
from vqa.evaluation.breakdowns import Group, by_group
from vqa.evaluation.collapse import alarm, spreads
from vqa.evaluation.entries import Entry
from vqa.evaluation.metrics import exact_match
from vqa.evaluation.score import IMAGE_COLUMNS
from vqa.evaluation.statistics import Interval, Paired, holm, interval, label_codes, paired, sign_flip

BEST = "best"
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Versus:
    """An entry compared with the reference."""

    paired: Paired  # before: the reference; after: the entry
    p: float  # of the difference, by `sign_flip`
    p_corrected: float  # over all entries, by `holm`
    same_answer: int  # questions that both answered alike, right or wrong

    @property
    def significant(self) -> bool:
        """Whether the difference is not chance, at 5 % for all entries together."""
        return self.p_corrected < LEVEL


@dataclass(frozen=True, slots=True)
class Standing:
    """How one entry did."""

    name: str
    kind: str  # "table", or of a run: "base", "lora", "blind" (a guesser who never sees the image)
    exact_match: Interval  # on the shared questions
    versus: Versus | None  # None for the reference
    collapsed: str  # types of question whose answers have collapsed, and how; "" for none
    answers: int  # with a truth
    on_all: Interval  # exact match on all of these
    without_truth: int  # rows of the table that have none
    failed: int  # questions of the run that it could not answer
    repeated: int  # further answers to a question; the first counts
    unnamed: int  # answers without what questions are joined by
    unshared: int  # questions that another entry lacks


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """All entries on the questions that all of them answered."""

    joined_by: str  # "id" or "image and question"
    questions: int  # shared and compared
    groups: int  # products, or what else is resampled for the intervals
    grouped_by: str | None  # the column of these; None: every question is independent
    other_truth: int  # shared questions left out because their truths differ
    other_question: int  # shared ids left out because they stand for different questions
    reference: str  # the entry that all others are compared with
    standings: list[Standing]  # the best first
    by_question_type: list[Group]  # the largest first; variants: entry → exact match


@dataclass(frozen=True, slots=True)
class _Join:
    """The questions of all entries under one kind of key."""

    by: str
    found: list[dict[str, Answered]]  # per entry: key → its first answer
    repeated: list[int]
    unnamed: list[int]
    common: int  # keys that all entries have
    keys: list[str]  # those that are the same question with the same truth everywhere
    other_truth: int
    other_question: int


def compare(entries: Sequence[Entry], against: str | None = None, group_by: str | None = None) -> Leaderboard:
    """Rank entries and compare each with a reference.

    Args:
        entries: two or more, of different names.
        against: name of the reference, or `BEST`; None: the first.
        group_by: column that names the product or image; None: that of the first entry that knows products, or else images.

    Raises:
        UserError: fewer than two entries, no such reference, or no question that all share.
    """
    names = [entry.name for entry in entries]
    if len(entries) < 2:
        raise UserError(
            f"Nothing to compare {' '.join(names) or 'with'}: name two or more tables or runs with answers."
        )
    if against not in (None, BEST, *names):
        raise UserError(f"--against: {unknown_name(str(against), [BEST, *names], 'entry')}")
    join = _join(entries)
    answers = [[found[key] for key in join.keys] for found in join.found]
    right = [np.array([exact_match(p.truth, p.answer) for p in given]) for given in answers]
    grouped_by, clusters = _clusters(entries, answers, join.keys, group_by)
    order = sorted(range(len(entries)), key=lambda i: -right[i].mean())  # stable: equals stay as given
    reference = order[0] if against == BEST else names.index(against) if against else 0
    versus = _versus(answers, right, clusters, reference)
    # The type by the question's words alone: "yes/no" is known from the truth, which a guesser must not be told.
    types = [question_type(p.question, "") if p.question else "" for p in answers[0]]
    return Leaderboard(
        joined_by=join.by,
        questions=len(join.keys),
        groups=int(clusters.max()) + 1,
        grouped_by=grouped_by,
        other_truth=join.other_truth,
        other_question=join.other_question,
        reference=names[reference],
        standings=[_standing(entries[i], i, join, types, interval(right[i], clusters), versus.get(i)) for i in order],
        by_question_type=by_group(types, {names[i]: right[i] for i in order}, clusters) if any(types) else [],
    )


def _versus(
    answers: Sequence[Sequence[Answered]], right: Sequence[np.ndarray], clusters: np.ndarray, reference: int
) -> dict[int, Versus]:
    """Every entry but the reference, by its number, compared with it."""
    others = [i for i in range(len(right)) if i != reference]
    p_values = [sign_flip(right[i] - right[reference], clusters) for i in others]
    base = [normalize(p.answer) for p in answers[reference]]
    return {
        i: Versus(
            paired(right[reference], right[i], clusters),
            p,
            corrected,
            sum(normalize(given.answer) == said for given, said in zip(answers[i], base, strict=True)),
        )
        for i, p, corrected in zip(others, p_values, holm(p_values), strict=True)
    }


def _standing(
    entry: Entry, number: int, join: _Join, types: Sequence[str], rate: Interval, versus: Versus | None
) -> Standing:
    shared = (join.found[number][key] for key in join.keys)
    return Standing(
        name=entry.name,
        kind=entry.kind,
        exact_match=rate,
        versus=versus,
        collapsed=alarm(spreads((kind, p.truth, p.answer) for kind, p in zip(types, shared, strict=True))),
        answers=len(entry.answers),
        on_all=_on_all(entry),
        without_truth=entry.without_truth,
        failed=entry.failed,
        repeated=join.repeated[number],
        unnamed=join.unnamed[number],
        unshared=len(join.found[number]) - join.common,
    )


def _on_all(entry: Entry) -> Interval:
    groups = label_codes([p.item_id or number for number, p in enumerate(entry.answers)])
    return interval(np.array([exact_match(p.truth, p.answer) for p in entry.answers]), groups)


def _clusters(
    entries: Sequence[Entry], answers: Sequence[Sequence[Answered]], keys: Sequence[str], group_by: str | None
) -> tuple[str | None, np.ndarray]:
    """The column that groups the questions, and the group of each. The column is read from one entry, since entries may differ."""
    known = [i for i, given in enumerate(answers) if any(p.item_id for p in given)]
    known.sort(key=lambda i: (entries[i].grouped_by != group_by, entries[i].grouped_by != "item_id"))
    if not known:
        return None, np.arange(len(keys))
    labels = [
        p.item_id or f"\n{key}" for p, key in zip(answers[known[0]], keys, strict=True)
    ]  # no product has a line break
    return entries[known[0]].grouped_by, label_codes(labels)


def _join(entries: Sequence[Entry]) -> _Join:
    """Join by id where all have ids and share a question, else by image and question.

    Raises:
        UserError: they share no question.
    """
    joins = []
    if all(p.id for entry in entries for p in entry.answers):
        joins.append(_joined(entries, "id", lambda p: p.id))
    if not joins or not joins[0].keys:
        # A table may name images without their folders; then folders tell nothing apart in the others either.
        bare = any("/" not in p.image_id for entry in entries for p in entry.answers if p.image_id)
        joins.append(_joined(entries, "image and question", lambda p: _image_and_question(p, bare)))
    best = max(joins, key=lambda join: len(join.keys))
    if not best.keys:
        counts = ", ".join(f"{entry.name} ({len(entry.answers):,} answers)" for entry in entries)
        differ = f" {best.other_truth:,} have different truths." if best.other_truth else ""
        raise UserError(
            f"No question is shared by all of {counts}.{differ} Compare answers to the same questions of the same dataset. "
            f"Questions are joined by a column id, or by {' / '.join(IMAGE_COLUMNS)} and question."
        )
    return best


def _image_and_question(p: Answered, bare: bool) -> str:
    image, question = PurePosixPath(p.image_id), " ".join(p.question.casefold().split())
    return f"{image.name if bare else image}\n{question}" if p.image_id and question else ""


def _joined(entries: Sequence[Entry], by: str, key: Callable[[Answered], str]) -> _Join:
    found: list[dict[str, Answered]] = []
    # What each key stands for, over all answers of all entries, also repeated ones.
    truths: dict[str, set[str]] = {}
    questions: dict[str, set[str]] = {}
    repeated, unnamed = [], []
    for entry in entries:
        first: dict[str, Answered] = {}
        named = [(k, p) for p in entry.answers if (k := key(p))]
        for k, p in named:
            first.setdefault(k, p)
            truths.setdefault(k, set()).add(normalize(p.truth))
            if p.question:  # a table with ids may leave the question out
                questions.setdefault(k, set()).add(" ".join(p.question.casefold().split()))
        found.append(first)
        repeated.append(len(named) - len(first))
        unnamed.append(len(entry.answers) - len(named))
    common = sorted(set.intersection(*(set(first) for first in found)))
    same_question = [k for k in common if len(questions.get(k, ())) <= 1]
    keys = [k for k in same_question if len(truths[k]) == 1]
    other = len(same_question) - len(keys), len(common) - len(same_question)
    return _Join(by, found, repeated, unnamed, len(common), keys, *other)


def headline(board: Leaderboard) -> str:
    """The outcome in one sentence: who leads, and by how much over the reference or the next."""
    first, second = board.standings[:2]
    said = f"{first.name} is first with {100 * first.exact_match.mean:.1f} % right"
    other, sign, name = (first, 1, board.reference) if first.versus else (second, -1, second.name)
    assert other.versus is not None  # only the reference has none
    points = 100 * sign * other.versus.paired.difference.mean
    chance = "" if other.versus.significant else ", which may be chance"
    return f"{said}, {points:.1f} points above {name}{chance}."


def left_out(board: Leaderboard) -> list[str]:
    """What does not count and why, a line per entry and one for what concerns all."""
    reasons = {
        "unshared": "not answered by all",
        "repeated": "repeated",
        "unnamed": f"without {board.joined_by}",
        "without_truth": "without a truth",
        "failed": "without an answer",
    }
    lines = []
    if board.other_truth:
        lines.append(f"{board.other_truth:,} shared questions whose truths differ")
    if board.other_question:
        lines.append(f"{board.other_question:,} shared ids that stand for different questions")
    for one in board.standings:
        counted = [f"{count:,} {words}" for field, words in reasons.items() if (count := getattr(one, field))]
        if counted:
            lines.append(f"{one.name}: {', '.join(counted)}")
    return lines


def pair_facts(board: Leaderboard) -> list[str]:
    """What more there is to say about exactly two entries; nothing about more of them."""
    if len(board.standings) != 2:
        return []
    other = next(one for one in board.standings if one.versus)
    assert other.versus is not None
    test, detectable = other.versus.paired.mcnemar, other.versus.paired.detectable
    lines = [
        f"only {other.name} right: {test.fixed:,}; only {board.reference} right: {test.broken:,}; "
        f"same answer: {other.versus.same_answer:,}",
        f"McNemar p = {test.p:.2g}",
    ]
    if detectable:
        lines.append(f"smallest difference that this many questions can show: {100 * detectable:.1f} points")
    return lines
