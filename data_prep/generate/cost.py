"""What requests cost: by arithmetic before anything is sent, from a probe's replies, and as billed.

>>> estimate(147_702, settings)
Estimate(requests=162472, input_tokens=126_728_160, output_tokens=24_370_800, dollars=98.95, at_most=1901.3, hours=2.71, ...)
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.generate import models
from data_prep.generate.models import Price
from data_prep.generate.settings import RequestSettings
from data_prep.outcomes import UserError
from data_prep.records import Usage

# Expected of one request. PROMPT_TOKENS: about four characters a token, which a test compares with the prompt's file.
PROMPT_TOKENS = 480
OUTPUT_TOKENS = 150  # five pairs, measured
# Tokens of thoughts by level: assumed, as Google publishes none. `plan --probe` measures them.
THOUGHTS = {"minimal": 0, "low": 250, "medium": 640, "high": 2000}
FULL_IMAGE_TOKENS = 1120  # of a model without a card: Gemini 3's default
# Every field of the listing at its limit, in a script with a token a character, and the faults of the last reply.
MOST_PROMPT_TOKENS = 3500
REPEATED = 0.1  # share of replies that break the rules, and are followed by another request
SECONDS_PER_REPLY = {"standard": 3.0, "flex": 300.0}  # Google aims at 1 to 15 minutes for flex
TOKENS_USED = 0.65  # measured share of tokens_per_minute that gets used; see `quota.rate_limit.TokenSlots`
# Days for which the most expensive price counts: a batch is answered up to two days after it was submitted.
_PRICE_DAYS = 3
_Z = 1.96  # 95 %


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What one request is expected to take."""

    prompt_tokens: int = PROMPT_TOKENS
    output_tokens: int = OUTPUT_TOKENS
    image: bool = True


FIVE_QUESTIONS = RequestShape()


@dataclass(frozen=True, slots=True)
class ProductUsage:
    """What one product took, all of its requests together."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0  # thoughts included
    thought_tokens: int = 0
    usable: bool = False  # one of the replies has a valid pair

    def __add__(self, other: ProductUsage) -> ProductUsage:
        return ProductUsage(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.thought_tokens + other.thought_tokens,
            self.usable or other.usable,
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """Requests, tokens, dollars and hours for a number of products."""

    requests: int
    input_tokens: int
    output_tokens: int  # thoughts included
    dollars: float | None  # None: no price is known
    at_most: float | None  # dollars if every reply were cut off at its limit
    hours: float
    limited_by: str  # what determines the hours: requests_per_minute, requests_per_day, concurrency, batches, ...
    measured: int = 0  # products of a probe that it rests on; 0: arithmetic
    margin: float = 0.0  # dollars: with 95 % confidence the cost is within this of `dollars`; of a probe


def price(
    settings: RequestSettings, *, tier: str | None = None, day: datetime.date | None = None, model: str = ""
) -> Price | None:
    """The price of a request; None where it is not known.

    Args:
        settings: of generation; ``settings.prices`` override the list.
        tier: standard, flex or batch; default: that of single requests.
        day: default: today.
        model: which one answered, where it is not the one that was asked.
    """
    if settings.stand_in:
        return Price(0.0, 0.0)
    tier = tier or single_tier(settings)
    if own := settings.prices:
        share = 1.0 if tier == "standard" else own.discounted
        return Price(own.input * share, own.output * share)
    day = day or models.today()
    answered = models.list_price(model, tier, day) if model else None
    return answered or models.list_price(settings.model, tier, day)


def single_tier(settings: RequestSettings) -> str:
    """The tier of single requests: where batches are left, the last products are asked about at the full price."""
    return "flex" if settings.tier == "flex" else "standard"


def dollars(
    settings: RequestSettings, input_tokens: int, output_tokens: int, *, tier: str | None = None, model: str = ""
) -> float:
    """What tokens cost today; 0 where no price is known. Arguments as of `price`."""
    known = price(settings, tier=tier, model=model)
    return known.dollars(input_tokens, output_tokens) if known else 0.0


def billed(settings: RequestSettings, result: object, *, tier: str | None = None) -> float:
    """The price of a reply, or of an error that was billed all the same; 0 for other errors."""
    usage = getattr(result, "usage", Usage())
    reply = getattr(result, "reply", None) or result
    tier = tier or billed_tier(settings, reply)
    return dollars(
        settings, usage.input_tokens, usage.output_tokens, tier=tier, model=getattr(reply, "model_version", "")
    )


def billed_tier(settings: RequestSettings, reply: object, *, batch: bool = False) -> str:
    """The tier whose price a reply is billed at: the one that served it, where the server says so."""
    served = getattr(reply, "tier", "")
    return "batch" if batch else served if served in models.TIERS else single_tier(settings)


def image_tokens(settings: RequestSettings) -> int:
    """Tokens that an image is billed as."""
    card = models.card(settings.model)
    return card.image_tokens[settings.sent_resolution or "high"] if card else FULL_IMAGE_TOKENS


def assumed_thoughts(settings: RequestSettings) -> int:
    """Tokens of thoughts before a reply, which nobody publishes: `plan --probe` measures them."""
    card = models.card(settings.model)
    return THOUGHTS.get(settings.sent_thinking or (card.default if card else None) or "minimal", 0)


def max_request_cost(settings: RequestSettings, *, tier: str = "standard", output_tokens: int | None = None) -> float:
    """Dollars that one request can cost, at the highest price of the next days; 0 without a cap and a price.

    Args:
        settings: of generation.
        tier: batch, or standard, which flex requests may be served at.
        output_tokens: allowed, where they are not ``settings.max_output_tokens``.

    Raises:
        UserError: there is a cap, and no price to keep it with.
    """
    first = models.today()
    days = (first, first + datetime.timedelta(_PRICE_DAYS))
    card = models.card(settings.model)
    # A retired model's requests may be routed to its successor, and are billed at that one's price.
    answering = {settings.model, settings.successor or "", (card.successor if card else None) or ""}
    prices = [
        known for day in days for model in answering if (known := price(settings, tier=tier, day=day, model=model))
    ]
    if not prices and settings.max_dollars is not None:
        raise UserError(
            f"{settings.section}.max_dollars: the price of {settings.model} is not known, so no cap can be kept. Set {settings.section}.prices, such as "
            f"{{input: 0.30, output: 2.50}} in dollars per million tokens ({{input: 0, output: 0}} for a server of your own), or "
            f"remove max_dollars."
        )
    tokens_in = image_tokens(settings) + MOST_PROMPT_TOKENS
    return max((known.dollars(tokens_in, output_tokens or settings.max_output_tokens) for known in prices), default=0.0)


def max_request_tokens(settings: RequestSettings) -> int:
    """Tokens that one request can take: the image, twice the usual prompt, and all the output that is allowed."""
    return image_tokens(settings) + 2 * PROMPT_TOKENS + settings.max_output_tokens


def estimate(
    products: int,
    settings: RequestSettings,
    probe: Sequence[ProductUsage] = (),
    shape: RequestShape = FIVE_QUESTIONS,
) -> Estimate:
    """What ``products`` take: requests, tokens, dollars, and hours under the quota of all projects.

    Args:
        products: how many; or what else one request is about.
        settings: how they are asked about.
        probe: what some of them took; without it, arithmetic.
        shape: what one request is expected to take.
    """
    if probe:
        each = [
            statistics.fmean(getattr(one, name) for one in probe)
            for name in ("requests", "input_tokens", "output_tokens")
        ]
    else:
        share = 1 + (REPEATED if settings.max_asks > 1 else 0)
        output = min(shape.output_tokens + assumed_thoughts(settings), settings.max_output_tokens)
        each = [share, share * (image_tokens(settings) * shape.image + shape.prompt_tokens), share * output]
    requests, tokens_in, tokens_out = (round(products * one) for one in each)
    if settings.tier == "batch":
        # The API promises an answer within 24 hours; the next round of batches waits for the one before.
        rounds = -(-requests // (settings.batch.requests * settings.batch.at_once * settings.shards))
        hours = {"batches (24 h at most for each round)": 24.0 * rounds}
    else:
        hours = _hours_of_single_requests(requests, tokens_in + tokens_out, settings)
    limit = max(hours, key=lambda name: hours[name])
    known = price(settings, tier=settings.tier)
    worst_tier = "batch" if settings.tier == "batch" else "standard"
    uncapped = settings.model_copy(update={"max_dollars": None})
    # A reply that was cut off is followed by a request with twice the room.
    limits = [settings.max_output_tokens * 2**ask for ask in range(settings.max_asks)]
    worst = sum(max_request_cost(uncapped, tier=worst_tier, output_tokens=limit) for limit in limits)
    return Estimate(
        requests=requests,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        dollars=round(known.dollars(tokens_in, tokens_out), 2) if known else None,
        at_most=round(worst * products, 2) if known else None,
        hours=round(hours[limit], 2),
        limited_by=limit,
        measured=len(probe),
        margin=_margin([known.dollars(one.input_tokens, one.output_tokens) for one in probe]) * products
        if known
        else 0.0,
    )


def _margin(costs: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean cost of a product."""
    return _Z * statistics.stdev(costs) / math.sqrt(len(costs)) if len(costs) > 1 else 0.0


def _hours_of_single_requests(requests: int, tokens: int, settings: RequestSettings) -> dict[str, float]:
    """Hours that single requests take, by each limit."""
    projects, quota = len(settings.projects), settings.quota
    hours = {
        "concurrency": requests
        / (settings.concurrency * settings.shards / SECONDS_PER_REPLY[single_tier(settings)])
        / 3600
    }
    if quota.requests_per_minute:
        hours["requests_per_minute"] = requests / (quota.requests_per_minute * projects) / 60
    if quota.tokens_per_minute:
        hours["tokens_per_minute"] = tokens / (quota.tokens_per_minute * TOKENS_USED * projects) / 60
    if quota.requests_per_day:
        # Whole days of waiting: the last day's requests take next to no time.
        hours["requests_per_day"] = (requests - 1) // (quota.requests_per_day * projects) * 24.0 if requests else 0.0
    return hours
