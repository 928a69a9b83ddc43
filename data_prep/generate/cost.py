"""Cost of requests, estimated before anything is sent.

>>> estimate(147_702, settings)
Estimate(requests=162472, input_tokens=146_224_980, output_tokens=24_370_830, dollars=104.79, hours=2.71, ...)
"""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.generate.settings import GenerateSettings, PriceSettings

# Of one product, measured with the prompt of this folder.
INPUT_TOKENS = 900  # prompt and image: 258 tokens for an image of at most 384 px
OUTPUT_TOKENS = 150  # five pairs
REPEATED = 0.1  # share of replies that break the rules, and are followed by another request
SECONDS_PER_REPLY = 3.0
TOKENS_USED = 0.65  # measured share of tokens_per_minute that gets used; see `quota.rate_limit.TokenSlots`


@dataclass(frozen=True, slots=True)
class Estimate:
    """Requests, tokens, dollars and hours for a number of products."""

    requests: int
    input_tokens: int
    output_tokens: int
    dollars: float
    hours: float
    limited_by: str  # what determines the hours: requests_per_minute, requests_per_day, concurrency, batches, ...


def dollars(prices: PriceSettings, input_tokens: int, output_tokens: int) -> float:
    """The price of tokens at full price, in and out."""
    return (input_tokens * prices.input + output_tokens * prices.output) / 1e6


def billed(prices: PriceSettings, result: object) -> float:
    """The full price of a reply, or of an error that was billed all the same; 0 for other errors."""
    return dollars(prices, getattr(result, "input_tokens", 0), getattr(result, "output_tokens", 0))


def max_request_cost(settings: GenerateSettings) -> float:
    """Dollars that one request can cost: three times the usual input, and all the output that is allowed."""
    return dollars(settings.prices, 3 * INPUT_TOKENS, settings.max_output_tokens)


def max_request_tokens(settings: GenerateSettings) -> int:
    """Tokens that one request can take: half more than the usual input, and all the output that is allowed."""
    return INPUT_TOKENS * 3 // 2 + settings.max_output_tokens


def estimate(products: int, settings: GenerateSettings) -> Estimate:
    """What ``products`` take: requests, tokens, dollars, and hours under the quota of all projects."""
    requests = round(products * (1 + (REPEATED if settings.max_asks > 1 else 0)))
    tokens_in, tokens_out = requests * INPUT_TOKENS, requests * OUTPUT_TOKENS
    if batch := settings.batch:
        # The API promises an answer within 24 hours; the next round of batches waits for the one before.
        rounds = -(-requests // (batch.requests * batch.at_once * settings.shards))
        hours = {"batches (24 h at most for each round)": 24.0 * rounds}
    else:
        hours = _hours_of_single_requests(requests, tokens_in + tokens_out, settings)
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
    )


def _hours_of_single_requests(requests: int, tokens: int, settings: GenerateSettings) -> dict[str, float]:
    """Hours that single requests take, by each limit."""
    projects, quota = len(settings.projects), settings.quota
    hours = {"concurrency": requests / (settings.concurrency * settings.shards / SECONDS_PER_REPLY) / 3600}
    if quota.requests_per_minute:
        hours["requests_per_minute"] = requests / (quota.requests_per_minute * projects) / 60
    if quota.tokens_per_minute:
        hours["tokens_per_minute"] = tokens / (quota.tokens_per_minute * TOKENS_USED * projects) / 60
    if quota.requests_per_day:
        # Whole days of waiting: the last day's requests take next to no time.
        hours["requests_per_day"] = (requests - 1) // (quota.requests_per_day * projects) * 24.0 if requests else 0.0
    return hours
