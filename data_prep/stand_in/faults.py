"""Faults of replies. When they occur is a function of the seed, the image and how often it was asked about.

``{"status_429": 0.1, "four_pairs": 0.05}`` makes one request in ten fail with 429 and one in twenty come back a pair short.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

# The request fails: nothing is billed.
TRANSPORT = {
    "status_429": "429 RESOURCE_EXHAUSTED with a retryDelay",
    "status_500": "500 INTERNAL",
    "status_503": "503 UNAVAILABLE",
    "break_off": "closes the connection in the middle of the body",
    "hang": "never answers",
    "drip": "answers a byte every fifth of a second, so that no timeout between two bytes ends it",
    "html": "200 with an HTML page",
}
# The model answers badly: the reply is billed.
CONTENT = {
    "fences": "wraps the JSON in Markdown fences (not an error)",
    "four_pairs": "gives four pairs",
    "six_pairs": "gives six pairs",
    "two_words": "one answer has two words",
    "no_category": "the pairs have no category",
    "truncated": "the JSON stops in the middle",
    "max_tokens": "stops with finishReason MAX_TOKENS",
    "safety": "is blocked: no candidate",
}
KINDS = TRANSPORT | CONTENT
# A whole batch goes wrong: nothing is billed, except where it was created and the client does not know.
BATCH_KINDS = {
    "expired": "is not answered in time",
    "failed": "fails",
    "unconfirmed": "is created, but the connection breaks before the answer that says so",
}


def choose(faults: Mapping[str, float], seed: int, image: str, ask: int) -> str:
    """The fault of one request, or ""."""
    digest = hashlib.sha256(f"{seed}:{image}:{ask}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64
    for kind, share in faults.items():
        position -= share
        if position < 0:
            return kind
    return ""


def spoil(kind: str, pairs: Sequence[Mapping[str, str]]) -> str:
    """The text of a reply with a fault in its content."""
    spoiled = [dict(pair) for pair in pairs]
    if kind == "four_pairs":
        spoiled = spoiled[:4]
    elif kind == "six_pairs":
        spoiled = [*spoiled, {"question": "What else can be seen?", "answer": "nothing", "category": "easy"}]
    elif kind == "two_words" and spoiled:
        spoiled[0]["answer"] = "light blue"
    elif kind == "no_category":
        for pair in spoiled:
            pair.pop("category", None)
    text = json.dumps(spoiled)
    if kind == "fences":
        return f"Here are the questions:\n```json\n{text}\n```\n"
    if kind in ("truncated", "max_tokens"):
        return text[: len(text) * 2 // 3]
    return text
