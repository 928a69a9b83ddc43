"""What the stand-in says when it is asked for a second opinion, from the facts that it was given, with planted errors.

A pair of its facts may say more than the generator's answer::

    {"question": "What color is the mug?", "answer": "navy", "category": "easy", "truth": "black", "guessable": true}

``truth``: what is right, where the generator's answer is not. ``guessable``: the answer can be guessed without the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

Fact = Mapping[str, object]


class Opinions:
    """Answers to the questions of a quiz, the same every time.

    Args:
        facts: by the SHA-256 of an image.
        error: share of answers that are wrong.
        copies: share of the errors that repeat a wrong answer of the generator.
        seed: another seed, other errors.
    """

    def __init__(self, facts: Mapping[str, Sequence[Fact]], error: float, copies: float, seed: int) -> None:
        self._error, self._seed = error, seed
        pairs = [pair for row in facts.values() for pair in row]
        wrong = sum(str(pair.get("truth", pair["answer"])) != pair["answer"] for pair in pairs)
        # Of all answers error x copies repeat the generator's error, which they only can where it made one.
        self._copies = min(1.0, error * copies * len(pairs) / wrong) if wrong else 0.0
        self._invents = error * (1 - copies)
        self._by_image = {image: {str(pair["question"]): pair for pair in row} for image, row in facts.items()}
        self._by_text = {text: pair for row in self._by_image.values() for text, pair in row.items()}
        self._words = sorted({str(pair["answer"]) for pair in pairs})

    def reply(self, image: str, asked: Sequence[tuple[int, str]]) -> list[dict[str, object]] | None:
        """The answers; ``image`` is "" where the questions are asked without one; None for an unknown image."""
        known = self._by_image.get(image) if image else self._by_text
        if known is None:
            return None
        return [{"n": n, "answer": self._answer(image, text, known.get(text))} for n, text in asked]

    def _answer(self, image: str, text: str, fact: Fact | None) -> str:
        if fact is None:
            return "unknown"
        given, truth = str(fact["answer"]), str(fact.get("truth", fact["answer"]))
        if not image:
            knows = bool(fact.get("guessable")) != (self._draw("luck", text) < self._error)
            return given if knows else self._other(text, given, truth)
        if given != truth and self._draw("copy", image + text) < self._copies:
            return given
        if self._draw("invent", image + text) < self._invents:
            return self._other(image + text, given, truth)
        return truth

    def _other(self, key: str, *but: str) -> str:
        """A word that is neither the truth nor the generator's."""
        words = [word for word in self._words if word not in but] or ["unknown"]
        return words[int(self._draw("word", key) * len(words))]

    def _draw(self, what: str, key: str) -> float:
        digest = hashlib.sha256(f"{self._seed}:{what}:{key}".encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64
