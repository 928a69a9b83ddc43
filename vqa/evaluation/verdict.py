"""What fine-tuning has taught a model, by question type and overall, in one of four verdicts.

The fine-tuned model is compared with its base, with the blind floor (`data_prep.curate.blind_floor`: a guesser who never sees
an image), and with itself shown another product's image (the control; the difference is the gain by the image). These rules
are tried in this order; the first that applies gives the verdict:

=====================  =====================================================================================================
cannot be told         fewer than `FEW` products, or one of base and fine-tuned model has no answers
got worse              significantly below the base
cannot be told         there is no blind floor, since there are no training questions
no better than         not significantly above the blind floor; but `cannot be told` where too few questions were asked to
guessing               notice `MISSED`, that is where the detectable difference is larger
cannot be told         the control is off, or covers fewer than `FEW` products
no better than         the gain by the image is not significantly above zero, so the questions' words alone give the score;
guessing               `cannot be told` under the same condition as above
cannot be told         not significantly different from the base
learned                significantly above the base and above the blind floor, with a gain by the image
=====================  =====================================================================================================

"Significantly" is at 5 %, two-sided, by `sign_flip`, a paired exact test with products as the units; for question types each
of the three comparisons is corrected over the types by `holm`. That all three must hold needs no further correction
(intersection-union test: Berger 1982, "Multiparameter hypothesis testing and acceptance sampling"). Intervals are the cluster
bootstrap of `interval` and are not corrected. The test of all questions together is one hypothesis and is not corrected
either, but a mean over types can rise, and lie above the floor, without any type being learned: one type may be what the base
knew, and another a better guess. So all questions together are `learned` only where at least half of them are of types that
are; else they take the verdict that most of the other questions have. The alarm of `vqa.evaluation.collapse` stands beside the verdict and does not change it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vqa.evaluation.collapse import Spread, spread
from vqa.evaluation.statistics import FEW, Interval, detectable_difference, holm, interval, sign_flip

LEARNED = "learned"
GUESSING = "no better than guessing"
WORSE = "got worse"
UNKNOWN = "cannot be told"

LEVEL = 0.05
# A test that misses a difference of 20 points four times out of five cannot say that there is none.
MISSED = 0.2
SWAP = "swap"  # the control that decides: an image of another product. A grey image may be too strange for any answer


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of one model that all of its variants answered, as columns of one length N."""

    types: Sequence[str]
    truths: Sequence[str]
    clusters: np.ndarray  # product of each question
    answers: Mapping[str, Sequence[str]]  # "base", "lora" → answers
    right: Mapping[str, np.ndarray]  # "base", "lora", "blind" → 0 or 1
    controls: Mapping[str, np.ndarray]  # "grey", "swap" → 0 or 1 for the fine-tuned model; NaN where not asked


@dataclass(frozen=True, slots=True)
class Contrast:
    """The fine-tuned model compared with something else on the same questions."""

    difference: Interval  # fine-tuned minus the other
    p: float
    p_corrected: float | None  # over the question types; None with fewer than `FEW` products, where nothing is tested
    detectable: float | None  # see `detectable_difference`

    @property
    def direction(self) -> int:
        """1 or -1 where the difference is significant, else 0."""
        significant = self.p_corrected is not None and self.p_corrected < LEVEL
        return int(np.sign(self.difference.mean)) if significant else 0

    @property
    def too_weak(self) -> bool:
        """Whether a large difference would be missed."""
        return self.direction == 0 and (self.detectable is None or self.detectable > MISSED)


@dataclass(frozen=True, slots=True)
class Control:
    """The fine-tuned model on a sample of the questions, with each question's own image and with another."""

    own: Interval
    other: Interval
    gain: Contrast  # own minus other


@dataclass(frozen=True, slots=True)
class TypeVerdict:
    """The verdict on one question type, or on all questions, with all that it rests on."""

    verdict: str  # LEARNED, GUESSING, WORSE or UNKNOWN
    why: str  # the rule that decided, in words
    questions: int
    products: int
    base: Interval | None  # exact match
    lora: Interval | None
    blind: Interval | None
    over_base: Contrast | None
    over_blind: Contrast | None
    control: dict[str, Control]  # "swap", "grey"; empty where the control is off
    collapsed: bool  # the fine-tuned model's answers
    answers: dict[str, Spread]  # "base", "lora"


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """What a model has learned."""

    headline: str  # one sentence
    overall: TypeVerdict
    by_question_type: dict[str, TypeVerdict]  # the largest type first

    def spreads(self, variant: str) -> dict[str, Spread]:
        """How varied a variant's answers are, by question type."""
        return {
            kind: found.answers[variant] for kind, found in self.by_question_type.items() if variant in found.answers
        }


def judge(name: str, questions: Questions) -> ModelVerdict:
    """The verdicts on a model, which must have answered at least one question.

    Args:
        name: what the headline calls it.
        questions: its answers.
    """
    labels = np.array([kind or "other" for kind in questions.types], dtype=object)
    order = [kind for kind, _ in sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0]))]
    masks = {kind: labels == kind for kind in order}
    contrasts = {kind: _contrasts(questions, mask) for kind, mask in masks.items()}
    names = {which for found in contrasts.values() for which in found}
    for which in names:  # one family of hypotheses for each comparison
        family = [kind for kind in order if which in contrasts[kind] and _enough(contrasts[kind][which])]
        corrected = holm([contrasts[kind][which].p for kind in family])
        for kind, p in zip(family, corrected, strict=True):
            contrasts[kind][which] = _corrected(contrasts[kind][which], p)
    every = np.ones(len(labels), dtype=bool)
    alone = {k: _corrected(c, c.p) if _enough(c) else c for k, c in _contrasts(questions, every).items()}
    by_type = {kind: _type_verdict(questions, masks[kind], contrasts[kind]) for kind in order}
    overall = _as_the_types_allow(_type_verdict(questions, every, alone), by_type)
    return ModelVerdict(headline(name, by_type), overall, by_type)


def _as_the_types_allow(overall: TypeVerdict, by_type: Mapping[str, TypeVerdict]) -> TypeVerdict:
    """`learned` for all questions together only where most of them are of types that were learned; see the top of this file."""
    asked: Counter[str] = Counter()
    for found in by_type.values():
        asked[found.verdict] += found.questions
    share = asked.pop(LEARNED, 0) / overall.questions
    if overall.verdict != LEARNED or share >= 0.5:
        return overall
    why = f"the mean rose, but {100 * share:.0f} % of the questions are of types that it learned"
    return dataclasses.replace(overall, verdict=asked.most_common(1)[0][0], why=why)


def headline(name: str, by_type: Mapping[str, TypeVerdict]) -> str:
    """One plain sentence on what a model has learned: its question types by verdict, and those that collapsed."""
    kinds: dict[str, list[str]] = {}
    for kind, found in by_type.items():
        kinds.setdefault(found.verdict, []).append(kind)
    learned = kinds.get(LEARNED, [])
    of_all = f"{len(by_type)} question type{'s' if len(by_type) != 1 else ''}"
    parts = [f"learned {len(learned)} of {of_all}" + (f" ({', '.join(learned)})" if learned else "")]
    if GUESSING in kinds:
        parts.append(f"is no better than guessing on {_listed(kinds[GUESSING])}")
    if WORSE in kinds:
        parts.append(f"got worse on {_listed(kinds[WORSE])}")
    if UNKNOWN in kinds:
        parts.append(f"cannot be judged on {_listed(kinds[UNKNOWN])}")
    if collapsed := [kind for kind, found in by_type.items() if found.collapsed]:
        parts.append(f"gives collapsed answers on {_listed(collapsed)}")
    return f"Fine-tuned {name} {_listed(parts, '; it ')}."


def _listed(words: Sequence[str], between: str = ", ") -> str:
    if between != ", ":
        return between.join(words)
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _enough(contrast: Contrast) -> bool:
    return contrast.difference.clusters >= FEW


def _corrected(contrast: Contrast, p: float) -> Contrast:
    return Contrast(contrast.difference, contrast.p, p, contrast.detectable)


def _contrasts(questions: Questions, mask: np.ndarray) -> dict[str, Contrast]:
    """The fine-tuned model against "base", "blind" and each control, uncorrected, on some of the questions."""
    if "lora" not in questions.right:
        return {}
    lora = questions.right["lora"]
    others = {name: questions.right[name] for name in ("base", "blind") if name in questions.right}
    found = {}
    for name, other in (others | dict(questions.controls)).items():
        asked = mask & ~np.isnan(other)
        differences, clusters = (lora - other)[asked], questions.clusters[asked]
        if len(differences):
            found[name] = Contrast(
                interval(differences, clusters),
                sign_flip(differences, clusters),
                None,
                detectable_difference(differences, clusters),
            )
    return found


def _type_verdict(questions: Questions, mask: np.ndarray, contrasts: Mapping[str, Contrast]) -> TypeVerdict:
    clusters = questions.clusters[mask]
    rates = {name: interval(right[mask], clusters) for name, right in questions.right.items()}
    products = len(np.unique(clusters))
    control = {}
    for name in (name for name in questions.controls if name in contrasts):
        asked = mask & ~np.isnan(questions.controls[name])
        own, other = (
            interval(x[asked], questions.clusters[asked]) for x in (questions.right["lora"], questions.controls[name])
        )
        control[name] = Control(own, other, contrasts[name])
    places = np.flatnonzero(mask)
    answers = {
        name: spread([(questions.truths[i], given[i]) for i in places.tolist()])
        for name, given in questions.answers.items()
    }
    verdict, why = _decide(products, contrasts)
    return TypeVerdict(
        verdict=verdict,
        why=why,
        questions=len(clusters),
        products=products,
        base=rates.get("base"),
        lora=rates.get("lora"),
        blind=rates.get("blind"),
        over_base=contrasts.get("base"),
        over_blind=contrasts.get("blind"),
        control=control,
        collapsed="lora" in answers and answers["lora"].collapsed,
        answers=answers,
    )


def _decide(products: int, contrasts: Mapping[str, Contrast]) -> tuple[str, str]:
    """The verdict and its reason: the table at the top of this file, row by row."""
    base, blind, swap = (contrasts.get(name) for name in ("base", "blind", SWAP))
    if products < FEW:
        return UNKNOWN, f"only {products} product{'s' if products != 1 else ''}"
    if base is None:
        return UNKNOWN, "base and fine-tuned model have not both answered"
    if base.direction < 0:
        return WORSE, f"{-100 * base.difference.mean:.1f} points below the base"
    if blind is None:
        return UNKNOWN, "no training questions, so there is no blind floor"
    if blind.direction <= 0:
        if blind.too_weak:
            return UNKNOWN, f"too few questions to notice {100 * MISSED:.0f} points over the blind floor"
        return GUESSING, f"not above a guesser who sees no image ({_points(blind)} points)"
    if swap is None or not _enough(swap):
        return UNKNOWN, "the control with other images is off or too small, so nobody knows whether the model looks"
    if swap.direction <= 0:
        if swap.too_weak:
            return UNKNOWN, f"too few questions to notice a gain of {100 * MISSED:.0f} points by the image"
        return GUESSING, "right as often with another product's image: the words of the question give the answer"
    if base.direction == 0:
        return UNKNOWN, f"the difference from the base may be chance ({_points(base)} points)"
    return (
        LEARNED,
        f"{_points(base)} points over the base, {_points(blind)} over the blind floor, {_points(swap)} by the image",
    )


def _points(contrast: Contrast) -> str:
    return f"{100 * contrast.difference.mean:+.1f}"
