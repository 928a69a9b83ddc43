"""What can go wrong with a reply, and when: a function of the seed, the image and how often it was asked before.

``{"status_429": 0.1, "four_pairs": 0.05}`` makes one request in ten fail with 429 and one in twenty come back a pair short.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

# The request fails: nothing is paid.
TRANSPORT = {
    "status_429": "429 RESOURCE_EXHAUSTED with a retryDelay",
    "status_500": "500 INTERNAL",
    "status_503": "503 UNAVAILABLE",
    "break_off": "closes the connection in the middle of the body",
    "hang": "never answers",
    "drip": "answers a byte every fifth of a second, so that no time-out between bytes ever ends it",
    "html": "200 with an HTML page",
}
# The model answers badly: the reply is paid.
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
# A batch as a whole goes wrong: nothing is paid, but for one that is answered without anybody being told of it.
BATCH_KINDS = {
    "expired": "is not answered in time",
    "failed": "fails",
    "unheard": "is made, but the connection breaks before the answer that says so",
}


def choose(faults: dict[str, float], seed: int, image: str, ask: int) -> str:
    """The fault of one request, or ""."""
    digest = hashlib.sha256(f"{seed}:{image}:{ask}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64
    for kind, share in faults.items():
        position -= share
        if position < 0:
            return kind
    return ""


def spoil(kind: str, pairs: list[dict[str, Any]]) -> str:
    """The text of a reply with a fault in its content."""
    pairs = [dict(pair) for pair in pairs]
    if kind == "four_pairs":
        pairs = pairs[:4]
    elif kind == "six_pairs":
        pairs = [*pairs, {"question": "What else can be seen?", "answer": "nothing", "category": "easy"}]
    elif kind == "two_words" and pairs:
        pairs[0]["answer"] = "light blue"
    elif kind == "no_category":
        for pair in pairs:
            pair.pop("category", None)
    text = json.dumps(pairs)
    if kind == "fences":
        return f"Here are the questions:\n```json\n{text}\n```\n"
    if kind in ("truncated", "max_tokens"):
        return text[: len(text) * 2 // 3]
    return text
