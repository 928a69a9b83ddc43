"""Settings of the generate stage: model, keys, quota, prices.

::

    generate:
      generator: google_genai
      model: gemini-3.5-flash-lite
      projects:
        - {name: mine, keys: [GEMINI_API_KEY]}          # names of environment variables, never the keys themselves
      quota: {requests_per_minute: 15, requests_per_day: 1500}
      prices: {input: 0.30, output: 2.50, read_on: 2026-11-24}
      max_dollars: 20
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_STRICT = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)  # an input may be a key by mistake


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
    """Dollars per million tokens. Prices change within months: look them up, and note the date."""

    model_config = _STRICT

    input: float = Field(default=0.30, ge=0)
    output: float = Field(default=2.50, ge=0)
    read_on: datetime.date = datetime.date(2026, 11, 24)


class BatchSettings(BaseModel):
    """Gemini's Batch API: half the price, and an answer within 24 hours, often within one. One or two shards are enough, as
    the tasks only wait."""

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

    price: float = Field(default=0.5, ge=0, le=1)
    """Price of a batch request as a share of the full price."""


class StandInSettings(BaseModel):
    """A server on this machine that speaks Gemini's protocol and answers from a file: for the demo, tests and dry runs."""

    model_config = _STRICT

    answers: Path
    """JSONL with image_sha256 and qas, one line an image."""

    latency: float = Field(default=0.0, ge=0)
    """Seconds before each reply."""

    faults: dict[str, float] = Field(default_factory=dict)
    """Share of requests (0 to 1) that go wrong, by kind; ``python -m data_prep.stand_in --help`` lists the kinds."""

    @field_validator("answers")
    @classmethod
    def _absolute(cls, answers: Path) -> Path:
        return answers.expanduser().absolute()  # tasks may start in another folder


class GenerateSettings(BaseModel):
    """How questions are generated."""

    model_config = _STRICT

    generator: str = "google_genai"
    """A file of data_prep/generate/clients/: google_genai, google_generativeai, openai_compatible."""

    model: str = "gemini-3.5-flash-lite"
    endpoint: str | None = None
    """A server other than Google's, such as http://gpu-node:8000 (vLLM, Ollama) for openai_compatible."""

    projects: list[ProjectSettings] = Field(default=[ProjectSettings()], min_length=1)
    temperature: float = Field(default=0.4, ge=0, le=2)
    max_output_tokens: int = Field(default=1024, ge=64)
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

    quota: QuotaSettings = QuotaSettings()
    prices: PriceSettings = PriceSettings()
    max_dollars: float | None = Field(default=None, gt=0)
    """A hard cap for the whole run: no request is sent that could exceed it."""

    batch: BatchSettings | None = None
    """Use the Batch API; ``batch: {}`` takes the defaults. Needs google_genai and a paid project."""

    require_category: bool = True
    """Ask again where a pair is not marked easy, medium or hard."""

    stand_in: StandInSettings | None = None
    """Ask a stand-in that the task starts itself. Nothing is paid, and the report says so."""

    @model_validator(mode="after")
    def _one_source_of_answers(self) -> GenerateSettings:
        if self.stand_in and self.endpoint:
            raise ValueError("stand_in and endpoint exclude each other: delete one of them")
        if self.batch and self.generator.replace("-", "_") != "google_genai":
            raise ValueError(f"batch needs generator: google_genai; {self.generator} has no Batch API")
        if len({project.name for project in self.projects}) < len(self.projects):
            raise ValueError("projects: two projects have the same name; quotas are kept by name")
        return self
