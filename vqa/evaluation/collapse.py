"""The collapse alarm: a model that gives one answer to everything of a kind, or answers that are no words.

A mean over all questions hides it: a model that always says "three" is right on the questions whose answer is three.

>>> alarm(spreads([("count", str(2 + i % 5), "three") for i in range(247)]))
'count (247 of 247 answers are "three")'
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from data_prep.normalize import normalize

# Chosen on real answers, by the type of the question's words. Published BLIP + LoRA (69 % right), 11 types of 50 questions or
# more: the most frequent answer takes at most 6 points more than the most frequent truth, and the answers are 0.56 to 1.01 times
# as varied as the truths. Published ViLT + LoRA (28 % right): "unknown" takes 56 to 100 % of every type but color and material;
# of material it takes 32 %, and the answers are 0.19 times as varied. A demo model that guessed: one answer takes 79 to 100 % of
# three types, and 63 % of the answers about shape are word-pieces. The published base models stay at 0.30 times or above. Of
# 20 questions drawn from one type of the BLIP adapter's answers, 1 % of the draws raise the alarm.
MIN_QUESTIONS = 20  # fewer answers are alike by chance
# Both must hold for the most frequent answer, since the truth may be lopsided too:
MOST_SHARE = 0.5  # of all answers
MOST_EXCESS = 0.25  # over the share of the most frequent truth
LEAST_VARIETY = 0.2  # perplexity of the answers divided by that of the truths
MOST_NO_WORDS = 0.05  # share of word-pieces and empty answers, beyond the truth's; of ABO's answers 0.4 % are no words


@dataclass(frozen=True, slots=True)
class Spread:
    """How varied the answers to one type of question are, beside the truths."""

    questions: int
    top_answer: str  # the most frequent after normalization, in its most frequent spelling
    top_count: int
    truth_top_share: float  # of the most frequent truth
    distinct: int  # different answers, normalized
    truth_distinct: int
    entropy: float  # of the answers, in bits
    truth_entropy: float
    no_words: int  # answers that are word-pieces ("##x"), empty or punctuation only
    signs: list[str]  # of collapse, in words; none: the answers are as varied as they should be

    @property
    def collapsed(self) -> bool:
        """Whether the alarm is raised."""
        return bool(self.signs)


def spreads(answers: Iterable[tuple[str, str, str]]) -> dict[str, Spread]:
    """The spread of the answers by question type, the largest type first.

    Args:
        answers: (question type, truth, answer).
    """
    by_type: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for kind, truth, answer in answers:
        by_type[kind].append((truth, answer))
    return {kind: spread(pairs) for kind, pairs in sorted(by_type.items(), key=lambda item: (-len(item[1]), item[0]))}


def spread(pairs: list[tuple[str, str]]) -> Spread:
    """The spread of some answers, and whether they have collapsed. Each pair is (truth, answer)."""
    truths, given = (Counter(normalize(pair[side]) for pair in pairs) for side in (0, 1))
    broken = Counter(answer for _, answer in pairs if is_no_word(answer))
    count = len(pairs)
    (top, times), (_, truth_times) = given.most_common(1)[0], truths.most_common(1)[0]
    spelled = Counter(answer for _, answer in pairs if normalize(answer) == top).most_common(1)[0][0]
    entropy, truth_entropy = _entropy(given), _entropy(truths)
    signs = []
    if count >= MIN_QUESTIONS:
        if times >= MOST_SHARE * count and times - truth_times >= MOST_EXCESS * count:
            signs.append(f'{times:,} of {count:,} answers are "{spelled}"')
        elif 2 ** (entropy - truth_entropy) < LEAST_VARIETY:
            signs.append(f"{len(given):,} different answers where the truth has {len(truths):,}")
        excess = broken.total() - sum(is_no_word(truth) for truth, _ in pairs)
        if excess >= MOST_NO_WORDS * count:
            signs.append(
                f'{broken.total():,} of {count:,} answers are no words, such as "{broken.most_common(1)[0][0]}"'
            )
    return Spread(
        questions=count,
        top_answer=spelled,
        top_count=times,
        truth_top_share=truth_times / count,
        distinct=len(given),
        truth_distinct=len(truths),
        entropy=entropy,
        truth_entropy=truth_entropy,
        no_words=broken.total(),
        signs=signs,
    )


def is_no_word(answer: str) -> bool:
    """Whether an answer is a piece of a word, as a tokenizer's decoder prints it, or has neither letter nor digit."""
    return answer.lstrip().startswith("##") or not any(character.isalnum() for character in answer)


def alarm(found: Mapping[str, Spread]) -> str:
    """The types that have collapsed and how, as the end of a sentence; "" where none has."""
    return ", ".join(f"{kind or 'all'} ({'; '.join(one.signs)})" for kind, one in found.items() if one.collapsed)


def notice(name: str, found: Mapping[str, Spread]) -> str:
    """The alarm about a fine-tuned model as a sentence; "" where it is not raised."""
    said = alarm(found)
    return f"{name}: the fine-tuned model's answers have collapsed on {said}." if said else ""


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return sum(-count / total * math.log2(count / total) for count in counts.values()) + 0.0  # + 0.0: not -0.0
