"""Reads a GenerateContentResponse, whichever library or batch it came through.

>>> read_reply({"candidates": [{"content": {"parts": [{"text": "[…]"}]}, "finishReason": "STOP"}],
...             "usageMetadata": {"promptTokenCount": 1520, "candidatesTokenCount": 148, "thoughtsTokenCount": 31,
...                               "totalTokenCount": 1699}, "modelVersion": "gemini-3.5-flash-lite"})
RawReply(text='[…]', finish_reason='STOP', usage=Usage(input_tokens=1520, output_tokens=179, image_tokens=None,
         thought_tokens=31), model_version='gemini-3.5-flash-lite', model_status='', tier='')
"""

from __future__ import annotations

import re
from typing import Any

from data_prep.generate.clients.base import RawReply
from data_prep.generate.clients.errors import ItemRefused, not_a_reply
from data_prep.records import Usage

# SAFETY, IMAGE_SAFETY, RECITATION, LANGUAGE, BLOCKLIST, PROHIBITED_CONTENT, SPII, ...
_FILTERED = re.compile(r"SAFETY|RECITATION|LANGUAGE|BLOCKLIST|PROHIBITED|SPII")


def read_reply(reply: dict[str, Any]) -> RawReply:
    """The reply in a GenerateContentResponse, as the REST API spells it.

    Raises:
        ItemRefused: Google's filters withhold the text.
        RetryableError: it has neither a candidate nor a count of tokens.
    """
    usage, candidates = read_usage(reply.get("usageMetadata") or {}), reply.get("candidates") or []
    candidate = candidates[0] if candidates else {}
    parts = (candidate.get("content") or {}).get("parts") or []
    headers = (reply.get("sdkHttpResponse") or {}).get("headers") or {}
    raw = RawReply(
        # Thought parts are a summary of the model's thoughts, not its answer. A signature has no text.
        text="".join(part.get("text") or "" for part in parts if not part.get("thought")),
        finish_reason=candidate.get("finishReason") or ("UNKNOWN" if candidates else "NO_CANDIDATE"),
        usage=usage,
        model_version=str(reply.get("modelVersion") or "").removeprefix("models/"),
        model_status=_status(reply.get("modelStatus") or {}),
        tier=str(headers.get("x-gemini-service-tier") or "").lower(),
    )
    if not candidates:
        blocked = (reply.get("promptFeedback") or {}).get("blockReason", "")
        if not usage.input_tokens and not blocked:  # JSON of another shape, which the libraries take for a reply
            raise not_a_reply("nothing in it")
        if blocked:
            raise ItemRefused("blocked", blocked, reply=raw)
    # Any other reply without a text was the model's fault, not the product's: it may be asked again.
    if not raw.text and _FILTERED.search(raw.finish_reason):
        raise ItemRefused(f"finished_{raw.finish_reason.lower()}", "no text", reply=raw)
    return raw


def read_usage(usage: dict[str, Any]) -> Usage:
    """The tokens of a UsageMetadata by kind."""
    prompt, text = usage.get("promptTokenCount") or 0, usage.get("candidatesTokenCount") or 0
    # Thoughts are billed as output and are not among the candidates' tokens. google-generativeai does not know their
    # field and shows them only as the rest of the total.
    rest = (usage.get("totalTokenCount") or 0) - prompt - text
    thoughts = usage.get("thoughtsTokenCount") or max(0, rest)
    by_kind = usage.get("promptTokensDetails")
    images = None
    if by_kind:
        images = sum(entry.get("tokenCount") or 0 for entry in by_kind if entry.get("modality") == "IMAGE")
    return Usage(prompt, text + thoughts, images, thoughts)


def _status(status: dict[str, Any]) -> str:
    """A ModelStatus in one line: ``DEPRECATED, until 2026-12-01T00:00:00Z: Use gemini-3.5-flash-lite.``"""
    stage = str(status.get("modelStage") or "")
    retires, message = status.get("retirementTime"), status.get("message")
    return stage + (f", until {retires}" if retires else "") + (f": {message}" if message else "")
