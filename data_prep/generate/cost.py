"""What asking will cost, before anything is sent.

>>> estimate(147_702, settings)
Estimate(requests=162472, input_tokens=146_224_980, output_tokens=24_370_830, dollars=104.79, hours=2.71, ...)
"""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.generate.settings import GenerateSettings, PriceSettings

INPUT_TOKENS = 900  # a product: prompt, and an image of at most 384 px (258 tokens)
OUTPUT_TOKENS = 150  # five pairs
ASKED_AGAIN = 0.1  # share of replies that break the rules, so that they are asked for once more
SECONDS_PER_REPLY = 3.0
TOKENS_USED = (
    0.65  # share of tokens_per_minute that gets used, measured; see `data_prep.generate.rate_limit.TokenPermits`
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a number of products comes to."""

    requests: int
    input_tokens: int
    output_tokens: int
    dollars: float
    hours: float
    limited_by: str  # what decides the hours: requests_per_minute, requests_per_day, concurrency, batches, ...
    over_budget: bool  # generate.max_dollars will stop it before its end
    prices_read_on: str  # ISO date


def dollars(prices: PriceSettings, input_tokens: int, output_tokens: int) -> float:
    """The price of so many tokens."""
    return (input_tokens * prices.input + output_tokens * prices.output) / 1e6


def dearest(settings: GenerateSettings) -> float:
    """The most that one request is expected to cost: three times the usual input, and as much output as is allowed."""
    return dollars(settings.prices, 3 * INPUT_TOKENS, settings.max_output_tokens)


def most_tokens(settings: GenerateSettings) -> int:
    """The most tokens that one request is expected to take: half more than the usual input, and all the output allowed."""
    return INPUT_TOKENS * 3 // 2 + settings.max_output_tokens


def estimate(products: int, settings: GenerateSettings) -> Estimate:
    """What asking about ``products`` takes: requests, tokens, dollars, and hours under the quota of all projects."""
    requests = round(products * (1 + (ASKED_AGAIN if settings.max_asks > 1 else 0)))
    tokens_in, tokens_out = requests * INPUT_TOKENS, requests * OUTPUT_TOKENS
    if batch := settings.batch:
        rounds = -(-requests // (batch.requests * batch.at_once * settings.shards))
        hours = {"batches (24 h at most for each round)": 24.0 * rounds}
    else:
        hours = _hours_one_by_one(requests, tokens_in + tokens_out, settings)
    limit = max(hours, key=lambda name: hours[name])
    price = 0.0 if settings.stand_in else dollars(settings.prices, tokens_in, tokens_out)
    price *= batch.price if batch else 1.0
    return Estimate(
        requests=requests,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        dollars=round(price, 2),
        hours=round(hours[limit], 2),
        limited_by=limit,
        over_budget=settings.max_dollars is not None and price > settings.max_dollars,
        prices_read_on=settings.prices.read_on.isoformat(),
    )


def _hours_one_by_one(requests: int, tokens: int, settings: GenerateSettings) -> dict[str, float]:
    """By what limits it, how long so many requests take."""
    projects, quota = len(settings.projects), settings.quota
    hours = {"concurrency": requests / (settings.concurrency * settings.shards / SECONDS_PER_REPLY) / 3600}
    if quota.requests_per_minute:
        hours["requests_per_minute"] = requests / (quota.requests_per_minute * projects) / 60
    if quota.tokens_per_minute:
        hours["tokens_per_minute"] = tokens / (quota.tokens_per_minute * TOKENS_USED * projects) / 60
    if quota.requests_per_day:
        hours["requests_per_day"] = (requests - 1) // (quota.requests_per_day * projects) * 24.0 if requests else 0.0
    return hours
