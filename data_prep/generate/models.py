"""What is known of a generator model: its card in models.yaml, its terms, and its list price on a day.

>>> card("gemini-3.5-flash-lite").image_tokens["low"]
280
>>> list_price("gemini-3.8-flash", "standard", datetime.date(2027, 1, 1))
Price(input=1.5, output=7.5)
"""

from __future__ import annotations

import datetime
import functools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CARDS_FILE = Path(__file__).parent / "models.yaml"
TODAY = "PRODUCT_VQA_TODAY"  # environment variable: the tests run on a fixed date
NOTICE_DAYS = 60  # a shutdown or a change of price is announced this long before
TIERS = ("standard", "flex", "batch")
_HALF = 0.5  # flex and batch: https://ai.google.dev/gemini-api/docs/optimization, read on 2026-11-24


def today() -> datetime.date:
    """The date in UTC that prices and shutdowns are looked up for."""
    fixed = os.environ.get(TODAY)
    return datetime.date.fromisoformat(fixed) if fixed else datetime.datetime.now(datetime.UTC).date()


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms that a model is used under."""

    name: str
    url: str
    effective: datetime.date
    read_on: datetime.date
    training: str  # what they say of models that are trained on the output
    privacy: str  # who may read requests and replies


@dataclass(frozen=True, slots=True)
class Card:
    """One model, as models.yaml describes it."""

    name: str
    thinking: str  # level, budget or none: how it is told how much to think
    image_tokens: dict[str, int]  # by resolution: low, medium, high
    sampling: str  # ignored or used: whether temperature has an effect
    api_version: str
    terms: Terms
    read_on: datetime.date
    sources: list[str]
    levels: dict[str, int | None] = field(default_factory=dict)  # accepted levels; with the tokens of a budget
    default: str | None = None  # the level it takes when it is told none
    shutdown: datetime.date | None = None  # the first day on which it does not answer itself
    after: str = ""  # from then on: error or routed
    successor: str | None = None

    def is_shut_down(self, day: datetime.date) -> bool:
        """Whether it no longer answers on a day."""
        return self.shutdown is not None and self.shutdown <= day


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens."""

    input: float
    output: float  # thoughts included

    def __str__(self) -> str:
        return f"${self.input:g} in and ${self.output:g} out per million tokens"

    def dollars(self, input_tokens: float, output_tokens: float) -> float:
        """What a number of tokens costs."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


@functools.cache
def _file() -> Any:
    return yaml.safe_load(CARDS_FILE.read_text(encoding="utf-8"))


@functools.cache
def cards() -> dict[str, Card]:
    """All cards, by name."""
    terms = {name: Terms(**fields) for name, fields in _file()["terms"].items()}
    found = {}
    for name, fields in _file()["models"].items():
        levels = fields.get("levels", {})
        by_level = levels if isinstance(levels, dict) else dict.fromkeys(levels)
        found[name] = Card(name=name, **{**fields, "terms": terms[fields["terms"]], "levels": by_level})
    return found


def open_teacher() -> Card:
    """The model with open weights to use where Google's terms do not suit."""
    return cards()[str(_file()["open_teacher"])]


def card(model: str) -> Card | None:
    """The card of a model; None for one that nobody described.

    A name may have a folder before it and a version or size after it: models/gemini-3.6-flash-001, Qwen/Qwen3-VL-8B-Instruct.
    An alias such as gemini-flash-latest has none: what it stands for changes.
    """
    last = model.rpartition("/")[2].lower()
    for name, found in cards().items():
        if re.fullmatch(rf"{re.escape(name)}([-:]\d.*)?", last):
            return found
    return None


def list_price(model: str, tier: str, day: datetime.date) -> Price | None:
    """Google's price of a model on a day, as the package genai-prices knows it; None where it does not.

    A model that is shut down and routed costs what its successor costs.

    Args:
        model: its name.
        tier: standard, flex or batch.
        day: of the request.
    """
    known = card(model)
    if known and known.successor and known.after == "routed" and known.is_shut_down(day):
        return list_price(known.successor, tier, day)
    entry = _package_entry(model)
    if entry is None:
        return None
    noon = datetime.datetime.combine(day, datetime.time(12), datetime.UTC)
    standard = _plain(entry.get_prices(noon))
    if tier == "standard" or standard is None:
        return standard
    context = {"processing": "batch"} if tier == "batch" else {"service_tier": "flex"}
    special = _plain(entry.get_prices(noon, context))
    # The package knows the flex price of few models, and batch prices only since October 2026. Google halves both.
    return special if special != standard else Price(standard.input * _HALF, standard.output * _HALF)


def _package_entry(model: str) -> Any:
    """What genai-prices knows of a model of Google's, or None."""
    from genai_prices.data_snapshot import get_snapshot  # half a second, which most verbs do not need

    try:
        return get_snapshot().find_provider_model(model.rpartition("/")[2], None, "google", None)[1]
    except LookupError:
        return None


def _plain(price: Any) -> Price | None:
    """The package's price; of prices that rise with the length of a request, that of short ones."""
    rates = [getattr(rate, "base", rate) for rate in (price.input_mtok, price.output_mtok)]
    return None if None in rates else Price(float(rates[0]), float(rates[1]))


def notices(model: str, day: datetime.date) -> list[str]:
    """What a user should know of a model before relying on it: shutdown, change of price, deprecation; in sentences."""
    known, said = card(model), []
    if known is None:
        said.append(
            f"{model} has no card in {CARDS_FILE.name}: thinking and resolution are not sent, and nothing is known of the tokens "
            f"of an image, of thoughts, or of a shutdown."
        )
    elif known.shutdown is not None and known.shutdown <= day + datetime.timedelta(NOTICE_DAYS):
        said.append(_shutdown(known, known.shutdown, day))
    elif (entry := _package_entry(model)) is not None and entry.deprecated:
        said.append(f"{model} is deprecated, says the package genai-prices.")
    before = list_price(model, "standard", day)
    for ahead in range(1, NOTICE_DAYS + 1):
        later = day + datetime.timedelta(ahead)
        after = list_price(model, "standard", later)
        if after != before:
            said.append(f"The price of {model} changes on {later}: from {before} to {after}.")
            break
    return said


def main() -> None:
    """Print what is about to change for the models that still answer, and which cards were not looked at for long."""
    day = today()
    living = [found for found in cards().values() if not found.is_shut_down(day)]
    lines = [line for found in living for line in notices(found.name, day)]
    for found in living:
        if (age := (day - found.read_on).days) > NOTICE_DAYS:
            lines.append(
                f"The card of {found.name} was read {age} days ago: look it up again, and correct {CARDS_FILE}."
            )
    print(
        "\n".join(f"warning: {line}" for line in lines)
        or f"Generator models: nothing changes within {NOTICE_DAYS} days."
    )


def terms_lines(model: str) -> list[str]:
    """The teacher, the terms it is used under, and the teacher without such terms; in sentences."""
    known, free = card(model), open_teacher()
    if known is None:
        return [f"Teacher: {model}, whose terms are not known here: read them before you train on its answers."]
    terms = known.terms
    said = [
        f"Teacher: {model}, under the {terms.name} in force since {terms.effective} ({terms.url}, read on {terms.read_on}). "
        f"{terms.training} {terms.privacy}"
    ]
    if terms != free.terms:
        said.append(
            f"A teacher without such a clause: Qwen3-VL ({free.terms.name}), through generator: openai_compatible."
        )
    return said


def _shutdown(known: Card, shutdown: datetime.date, day: datetime.date) -> str:
    price = list_price(known.successor, "standard", max(day, shutdown)) if known.successor else None
    successor = f" Its successor is {known.successor} ({price or 'price unknown'})." if known.successor else ""
    when = (
        f"was shut down on {shutdown}"
        if shutdown <= day
        else f"is shut down on {shutdown}, in {(shutdown - day).days} days"
    )
    then = (
        "from then on another model answers under its name, at that model's price"
        if known.after == "routed"
        else "from then on requests fail with 404"
    )
    return f"{known.name} {when}; {then}.{successor}"


if __name__ == "__main__":
    main()
