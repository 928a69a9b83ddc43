"""The JSON of requests and replies, Gemini's and OpenAI's."""

from __future__ import annotations

import base64
from typing import Any

INPUT_TOKENS, OUTPUT_TOKENS = 900, 150  # about what a real product takes


def gemini_image(request: dict[str, Any]) -> bytes | None:
    """The image of a generateContent request."""
    for content in request.get("contents", []):
        for part in content.get("parts", []):
            inline = part.get("inlineData") or part.get("inline_data")
            if inline:
                # google-genai sends the URL-safe alphabet, google-generativeai the standard one.
                return base64.b64decode(inline["data"].replace("-", "+").replace("_", "/"))
    return None


def openai_image(request: dict[str, Any]) -> bytes | None:
    """The image of a chat completion's request."""
    for message in request.get("messages", []):
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part.get("type") == "image_url":
                return base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
    return None


def gemini_reply(text: str | None, finish: str, model: str) -> dict[str, object]:
    """A generateContent reply; blocked where there is no text."""
    usage = {"promptTokenCount": INPUT_TOKENS, "candidatesTokenCount": OUTPUT_TOKENS if text else 0}
    usage["totalTokenCount"] = sum(usage.values())
    if text is None:
        return {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage, "modelVersion": model}
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": finish, "index": 0}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model}


def openai_reply(text: str | None, finish: str, model: str) -> dict[str, object]:
    """A chat completion; filtered where there is no text."""
    reason = "content_filter" if text is None else {"STOP": "stop", "MAX_TOKENS": "length"}[finish]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    usage = {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    }
    return {"id": "x", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}
