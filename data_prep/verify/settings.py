"""Settings of the stage verify: second opinions about the curated questions.

::

    verify: {enabled: true}                                  # everything else as in generate, by another model
    verify: {enabled: true, split: all, model: gemini-3.8-flash, thinking: low}

Keys that are not given here are those of ``generate``: projects, quota, cap, tier, shards, stand-in. The cap is one for the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from data_prep.generate import models
from data_prep.generate.settings import RequestSettings

# The generator's own model would repeat its own errors; the first of these that is another one is asked.
_OTHERS = ("gemini-3.6-flash", "gemini-3.5-flash-lite")
# Of generate's keys, those that say which model is asked for what; all others hold for verify, too.
_OWN = frozenset(
    {"model", "successor", "thinking", "prices", "temperature", "show_listing", "require_category", "max_asks"}
)


class VerifySettings(RequestSettings):
    """Who is asked for a second opinion, and about what."""

    section: ClassVar[str] = "verify"

    enabled: bool = False
    """Whether anybody is asked: it costs money. See docs/truth.md."""

    split: Literal["test", "all"] = "test"
    """The test questions are a fifth of all, and what scores rest on. ``all`` is needed for ``train.keep: agreed``."""

    blind_products: int = Field(default=10, ge=1, le=15)
    """About how many products' questions are asked without images in one request, twice as many at most."""


def inherited(verify: Mapping[str, object], generate: Mapping[str, object]) -> Mapping[str, object]:
    """The section verify with the keys that it takes from generate, and another model than the generator's."""
    shared = {name: value for name, value in generate.items() if name not in _OWN}
    if verify.keys() & {"endpoint", "stand_in"}:  # they exclude each other: one's own replaces both
        shared = {name: value for name, value in shared.items() if name not in ("endpoint", "stand_in")}
    if str(shared.get("generator", "")).replace("-", "_") == "google_generativeai":
        shared["generator"] = "google_genai"  # the old library cannot tell another model how much to think
    found = {**shared, **verify}
    if "model" not in found:
        generator = str(generate.get("model", RequestSettings.model_fields["model"].default))
        found["model"] = next(name for name in _OTHERS if name != generator)
    card = models.card(str(found["model"]))
    if "thinking" not in found and card and card.levels:
        found["thinking"] = next(iter(card.levels))  # the least: one word needs little thought
    return found
