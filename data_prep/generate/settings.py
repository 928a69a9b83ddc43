"""Settings of the generate stage: model, keys, quota, prices.

::

    generate:
      generator: google_genai
      model: gemini-3.5-flash-lite
      thinking: minimal
      projects:
        - {name: mine, keys: [GEMINI_API_KEY]}          # names of environment variables, never the keys themselves
      quota: {requests_per_minute: 15, requests_per_day: 1500}
      max_dollars: 20
"""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_prep.generate import models

_STRICT = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)  # an input may be a key by mistake


_FLEX_TIMEOUT = 900.0  # seconds: Google aims at 1 to 15 minutes
# What each library can put into a request, beyond prompt and image.
_CAN_SEND: dict[str, frozenset[str]] = {
    "google_genai": frozenset({"thinking", "resolution", "flex", "batch"}),
    "google_generativeai": frozenset(),
    "openai_compatible": frozenset({"thinking"}),
}


class ProjectSettings(BaseModel):
    """A Google project. The quota belongs to the project, however many keys it has."""

    model_config = _STRICT

    name: str = "default"
    keys: list[str] = Field(default=["GEMINI_API_KEY"], min_length=1)
    """Names of the environment variables that hold its keys."""

    @field_validator("keys")
    @classmethod
    def _names_not_secrets(cls, keys: list[str]) -> list[str]:
        for key in keys:
            if not re.fullmatch(r"[A-Z][A-Z0-9_]*", key):
                raise ValueError("name environment variables such as GEMINI_API_KEY here, never the keys themselves")
        return keys


class QuotaSettings(BaseModel):
    """The quota of one project, which the tasks of an array share. None: no limit."""

    model_config = _STRICT

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """In and out together. About a third of it stays unused, as each request reserves max_output_tokens; the share shrinks
    as max_output_tokens approaches what replies really take."""

    requests_per_day: int | None = Field(default=None, ge=1)
    """Google's day ends at midnight Pacific time."""


class PriceSettings(BaseModel):
    """Dollars per million tokens, in place of those that the package genai-prices knows."""

    model_config = _STRICT

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    """Thoughts included."""

    discounted: float = Field(default=0.5, ge=0, le=1)
    """What flex and batch requests cost, as a share of that."""

    read_on: datetime.date | None = None
    """When they were looked up; prices change within months."""


class BatchSettings(BaseModel):
    """How ``tier: batch`` uses Gemini's Batch API. One or two shards are enough, as the tasks only wait."""

    model_config = _STRICT

    requests: int = Field(default=500, ge=1, le=50_000)
    """Requests in a batch. Small batches are answered sooner, and less is repeated when one expires."""

    at_once: int = Field(default=4, ge=1, le=100)
    """Batches under way at most, per task. Google limits the tokens that are enqueued in all batches of a project."""

    at_least: int = Field(default=20, ge=1)
    """Fewer products than this are asked about in single requests, at the full price."""

    poll_seconds: float = Field(default=60.0, gt=0)
    """Seconds between two polls of a batch."""

    give_up_hours: float = Field(default=50.0, gt=0)
    """A batch that has not ended after so many hours is cancelled. Google's own limit is 48."""


class StandInSettings(BaseModel):
    """A server on this machine that speaks Gemini's protocol and answers from a file: for the demo, tests and dry runs."""

    model_config = _STRICT

    answers: Path
    """JSONL with image_sha256 and qas, one line an image."""

    latency: float = Field(default=0.0, ge=0)
    """Seconds before each reply."""

    opinion_error: float = Field(default=0.0, ge=0, le=1)
    """Share of second opinions that are wrong."""

    opinion_copies: float = Field(default=0.0, ge=0, le=1)
    """Share of these errors that repeat a wrong answer of the generator; the others are other wrong words."""

    faults: dict[str, float] = Field(default_factory=dict)
    """Share of requests (0 to 1) that go wrong, by kind; ``python -m data_prep.stand_in --help`` lists the kinds."""

    @field_validator("answers")
    @classmethod
    def _absolute(cls, answers: Path) -> Path:
        return answers.expanduser().absolute()  # tasks may start in another folder


def default_quota_folder() -> Path:
    """Below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "product-vqa" / "quota"


class RequestSettings(BaseModel):
    """How a model is asked: which, through what, how fast, for how much."""

    model_config = _STRICT
    section: ClassVar[str] = "generate"  # of the configuration, which is also the stage's name

    generator: str = "google_genai"
    """A file of data_prep/generate/clients/: google_genai, google_generativeai, openai_compatible."""

    model: str = "gemini-3.5-flash-lite"
    successor: str | None = None
    """Model version that may answer beside the one that answered first. A retired model's requests are routed to its
    successor: a run stops there until this names it, and then keeps both apart in records, card and report."""

    endpoint: str | None = None
    """A server other than Google's, such as http://gpu-node:8000 (vLLM, Ollama) for openai_compatible."""

    projects: list[ProjectSettings] = Field(default=[ProjectSettings()], min_length=1)
    tier: Literal["standard", "flex", "batch"] = "standard"
    """flex: half the price; an answer takes minutes, and may be refused when Google is busy. batch: half the price; an answer
    within 24 hours, often within one. Both need google_genai."""

    thinking: Literal["minimal", "low", "medium", "high"] | None = "minimal"
    """How much the model thinks before it answers. Thoughts are billed as output and count against max_output_tokens. None: not
    sent, so the model's own default holds. Not sent either to a model without a card in models.yaml."""

    media_resolution: Literal["low", "medium", "high"] = "low"
    """Tokens that an image is turned into: 280, 560 or 1,120 on Gemini 3, whatever its size. ABO's small images have at most
    256 x 256 pixels: 280 tokens are one for a square of 15 pixels, as many as Gemini 2 took for such an image (258). More tokens
    enlarge it and show nothing new, and high makes a request 43 % more expensive. For ``images/original``, choose medium or high.
    Only google_genai can send it; the others get high."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    """None: not sent. Google advises against it, and its newer models ignore it."""

    max_output_tokens: int = Field(default=4096, ge=64)
    """Of one reply, thoughts included. A reply takes about 150; the rest is room for thoughts, which would otherwise leave none
    for the answer. It costs nothing unless it is used."""

    timeout: float = Field(default=60.0, gt=0)
    """Seconds that one request may take."""

    shards: int = Field(default=1, ge=1, le=100_000)
    """Tasks that share the work."""

    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests in flight at most, per task and project; fewer while the server answers 429."""

    max_asks: int = Field(default=2, ge=1, le=10)
    """Replies paid for at most, per product: a reply that breaks the rules is followed by another request."""

    max_tries: int = Field(default=3, ge=1, le=20)
    """Attempts at a product that failed for a temporary reason."""

    max_retries: int = Field(default=6, ge=0, le=30)
    """Retries of one request after temporary errors (429, 5xx, broken connections), with growing pauses."""

    outage_minutes: float = Field(default=5.0, ge=0)
    """Minutes for which every request may fail (429, 503, no connection) before the task ends. No product is given up for it."""

    min_usable: float = Field(default=0.5, ge=0, le=1)
    """Share of the run's first ten replies that must have a valid pair, or the run stops. 0: go on regardless."""

    quota: QuotaSettings = QuotaSettings()
    quota_folder: Path = Field(default_factory=default_quota_folder)
    """Where all runs that use the same projects share their quota, on a file system that all nodes see. Default:
    product-vqa/quota in the user's cache folder (XDG_CACHE_HOME or ~/.cache). A stand-in's quota stays in the run."""

    prices: PriceSettings | None = None
    """None: those that the package genai-prices knows, by date."""

    max_dollars: float | None = Field(default=None, gt=0)
    """A hard cap for the whole run: no request is sent that could exceed it. Needs a known price."""

    batch: BatchSettings = BatchSettings()

    stand_in: StandInSettings | None = None
    """Ask a stand-in that the task starts itself. Nothing is paid, and the report says so."""

    @field_validator("quota_folder")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()  # tasks may start in another folder

    @model_validator(mode="after")
    def _one_source_of_answers(self) -> Self:
        if self.stand_in and self.endpoint:
            raise ValueError("stand_in and endpoint exclude each other: delete one of them")
        if len({project.name for project in self.projects}) < len(self.projects):
            raise ValueError("projects: two projects have the same name; quotas are kept by name")
        return self

    @model_validator(mode="after")
    def _what_the_generator_can_send(self) -> Self:
        can = _CAN_SEND.get(self.library, frozenset())
        if self.tier not in can | {"standard"}:
            raise ValueError(f"tier: {self.tier} needs generator: google_genai; {self.generator} cannot ask for it")
        if self.tier == "flex" and self.timeout < _FLEX_TIMEOUT and not self.stand_in:
            raise ValueError(
                f"timeout: a flex request may take 15 minutes, and one that is given up may be billed; set generate.timeout to "
                f"{_FLEX_TIMEOUT:g} seconds or more"
            )
        card = models.card(self.model)
        if card is None or card.thinking == "none":
            return self
        if self.thinking and self.thinking not in card.levels:
            raise ValueError(
                f"thinking: {self.model} does not accept {self.thinking}; set generate.thinking to one of {', '.join(card.levels)}"
            )
        if "thinking" not in can and card.default != "minimal":
            raise ValueError(
                f"generator: {self.generator} cannot tell {self.model} how much to think, and by itself it thinks much (paid as "
                f"output); use generator: google_genai, or model: gemini-3.5-flash-lite"
            )
        if "thinking" not in can and self.thinking not in (None, card.default):
            raise ValueError(f"thinking: {self.generator} cannot send it; use generator: google_genai")
        return self

    @property
    def library(self) -> str:
        """The generator's file name: libraries are written google-genai, files google_genai."""
        return self.generator.replace("-", "_")

    @property
    def sent_thinking(self) -> str | None:
        """The level that requests carry; None where the model has none, or nothing is known of it."""
        card = models.card(self.model)
        known = card is not None and card.thinking != "none" and "thinking" in _CAN_SEND.get(self.library, frozenset())
        return self.thinking if known else None

    @property
    def sent_resolution(self) -> str | None:
        """The resolution that requests carry; None where the library cannot send it, or nothing is known of the model."""
        known = models.card(self.model) is not None and "resolution" in _CAN_SEND.get(self.library, frozenset())
        return self.media_resolution if known else None

    @property
    def api_version(self) -> str:
        """The version of Google's API that the client, batches and doctor use."""
        card = models.card(self.model)
        return card.api_version if card else "v1beta"  # has every model; v1 has not


class GenerateSettings(RequestSettings):
    """How questions are generated."""

    show_listing: Literal["none", "keywords", "all"] = "keywords"
    """What the prompt shows of a listing: nothing, its keywords, or also its name and product type. Words of its color,
    material, pattern and shape are removed: what the generator was told proves nothing about the image."""

    require_category: bool = True
    """Ask again where a pair is not marked easy, medium or hard."""
