"""The JSON of requests and replies, Gemini's and OpenAI's."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

INPUT_TOKENS, OUTPUT_TOKENS = 900, 150  # about what a real product takes
ROUTED_TO = "gemini-3.6-flash"
# What ListModels shows where no models were named.
MODELS = ("gemini-3.1-flash-lite", "gemini-3.5-flash-lite", "gemini-3.6-flash", "gemini-3.8-flash")
_IMAGE_TOKENS = {"MEDIA_RESOLUTION_LOW": 280, "MEDIA_RESOLUTION_MEDIUM": 560}
_FULL_IMAGE_TOKENS = 1120
_THOUGHT = "**Looking at the product**\n\nI see [one] item. I will count its parts before I write the five questions."
_SIGNATURE = base64.b64encode(b"a signature of thoughts").decode()


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a reply is billed as, by kind."""

    text_in: int = INPUT_TOKENS - 280
    image_in: int = 280
    thoughts: int = 0
    text_out: int = OUTPUT_TOKENS

    @property
    def input(self) -> int:
        """All of the prompt."""
        return self.text_in + self.image_in

    @property
    def output(self) -> int:
        """Billed as output."""
        return self.thoughts + self.text_out


@dataclass(frozen=True, slots=True)
class Manner:
    """How a reply is given, beside its text."""

    tokens: Tokens = Tokens()
    version: str | None = None  # model that answers; None: the one that was asked; "": the reply does not say
    stage: str = ""  # of the model's life: DEPRECATED, ...
    shows_thoughts: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, beside its image."""

    prompt: str = ""
    max_output_tokens: int = 65_536
    resolution: str = ""  # MEDIA_RESOLUTION_LOW, ...; "": the default


def _parts(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for content in request.get("contents", []):
        yield from content.get("parts", [])


def gemini_image(request: dict[str, Any]) -> bytes | None:
    """The image of a generateContent request."""
    for part in _parts(request):
        inline = part.get("inlineData") or part.get("inline_data")
        if inline:
            # google-genai sends the URL-safe alphabet, google-generativeai the standard one.
            return base64.b64decode(inline["data"].replace("-", "+").replace("_", "/"))
    return None


def gemini_asked(request: dict[str, Any]) -> Asked:
    """What a generateContent request asks for."""
    configuration = request.get("generationConfig") or {}
    return Asked(
        prompt=" ".join(part.get("text") or "" for part in _parts(request)),
        max_output_tokens=int(configuration.get("maxOutputTokens") or 65_536),
        resolution=str(configuration.get("mediaResolution") or ""),
    )


def _openai_parts(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for message in request.get("messages", []):
        yield from message["content"] if isinstance(message["content"], list) else []


def openai_image(request: dict[str, Any]) -> bytes | None:
    """The image of a chat completion's request."""
    for part in _openai_parts(request):
        if part.get("type") == "image_url":
            return base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
    return None


def openai_asked(request: dict[str, Any]) -> Asked:
    """What a chat completion's request asks for."""
    prompt = " ".join(part.get("text") or "" for part in _openai_parts(request))
    return Asked(prompt, int(request.get("max_tokens") or 65_536))


def drawn_tokens(asked: Asked, text: str, thoughts: float, seed: str) -> Tokens:
    """Tokens as Gemini 3 counts them; how long it thinks is drawn from a log-normal distribution around a mean.

    Args:
        asked: the image counts by its resolution, the prompt by its length.
        text: of the reply.
        thoughts: mean of the thought tokens.
        seed: the same for the same request.
    """
    draw = random.Random(seed)
    sigma = 0.6
    thought = round(thoughts * draw.lognormvariate(-(sigma**2) / 2, sigma)) if thoughts else 0
    return Tokens(
        text_in=round(len(asked.prompt) / draw.uniform(3.6, 4.4)),
        image_in=_IMAGE_TOKENS.get(asked.resolution, _FULL_IMAGE_TOKENS),
        thoughts=thought,
        text_out=round(len(text) / draw.uniform(3.0, 3.8)),
    )


def gemini_reply(text: str | None, finish: str, model: str, manner: Manner = Manner()) -> dict[str, object]:
    """A generateContent reply; blocked where there is no text."""
    tokens, version = manner.tokens, model if manner.version is None else manner.version
    out = tokens.text_out if text else 0
    usage: dict[str, Any] = {"promptTokenCount": tokens.input, "candidatesTokenCount": out}
    if tokens.thoughts:
        usage["thoughtsTokenCount"] = tokens.thoughts
    usage["totalTokenCount"] = sum(usage.values())
    usage["promptTokensDetails"] = [
        {"modality": "TEXT", "tokenCount": tokens.text_in},
        {"modality": "IMAGE", "tokenCount": tokens.image_in},
    ]
    reply: dict[str, object] = {"usageMetadata": usage, "responseId": "stand-in"}
    if version:
        reply["modelVersion"] = version
    if manner.stage:
        reply["modelStatus"] = {"modelStage": manner.stage, "message": f"Use {ROUTED_TO} instead."}
    if text is None:
        return reply | {"promptFeedback": {"blockReason": "SAFETY"}}
    candidate: dict[str, Any] = {"content": {"role": "model"}, "finishReason": finish, "index": 0}
    if text:  # without one Gemini gives a content without parts
        part = {"text": text} | ({"thoughtSignature": _SIGNATURE} if tokens.thoughts else {})
        thought = [{"text": _THOUGHT, "thought": True}] if manner.shows_thoughts else []
        candidate["content"]["parts"] = [*thought, part]
    return reply | {"candidates": [candidate]}


def openai_reply(text: str | None, finish: str, model: str, manner: Manner = Manner()) -> dict[str, object]:
    """A chat completion; filtered where there is no text."""
    tokens, version = manner.tokens, model if manner.version is None else manner.version
    reason = "content_filter" if text is None else {"STOP": "stop", "MAX_TOKENS": "length"}[finish]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    out = tokens.output if text or tokens.thoughts else OUTPUT_TOKENS
    usage: dict[str, object] = {
        "prompt_tokens": tokens.input,
        "completion_tokens": out,
        "total_tokens": tokens.input + out,
    }
    if tokens.thoughts:
        usage["completion_tokens_details"] = {"reasoning_tokens": tokens.thoughts}
    return {"id": "x", "object": "chat.completion", "model": version, "choices": [choice], "usage": usage}


def model_list(models: tuple[str, ...]) -> dict[str, object]:
    """Gemini's answer to ListModels."""
    methods = ["generateContent", "countTokens", "batchGenerateContent"]
    return {
        "models": [
            {
                "name": f"models/{model}",
                "version": "001",
                "inputTokenLimit": 1_048_576,
                "outputTokenLimit": 65_536,
                "supportedGenerationMethods": methods,
            }
            for model in models
        ]
    }


def openai_model_list(models: tuple[str, ...]) -> dict[str, object]:
    """OpenAI's list of models."""
    return {"object": "list", "data": [{"id": model, "object": "model"} for model in models]}
