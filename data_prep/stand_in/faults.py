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
    "bare_429": "429 RESOURCE_EXHAUSTED without RetryInfo, which says nothing of when to come back",
    "spending_cap": "429 without RetryInfo: the project's monthly spending cap is reached",
    "status_402": "402: the prepaid balance is empty",
    "retired": "404: the model is no longer available",
    "api_disabled": "403 PERMISSION_DENIED: the API is disabled in this project",
    "location": "400 FAILED_PRECONDITION: the requests come from an unsupported place",
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
    "eaten": "stops with MAX_TOKENS and without a text: all of max_output_tokens went into thoughts",
    "empty": "stops with STOP and without a text",
    "thoughts": "thinks first, and signs its text (not an error)",
    "thought_parts": "shows a summary of its thoughts before the text (not an error)",
    "routed": "another model answers, and modelVersion says so (not an error)",
    "no_version": "there is no modelVersion (not an error)",
    "deprecated": "modelStatus says that the model is deprecated (not an error)",
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


def spoil(kind: str, pairs: Sequence[Mapping[str, object]]) -> str:
    """The text of a reply with a fault in its content."""
    if kind in ("eaten", "empty"):
        return ""
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
