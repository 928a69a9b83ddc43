"""Money, time and space for 10³ to 10⁸ products, from measured rates: the tables of docs/scale.md and docs/gemini.md.

    python -m benchmarks.scale

Each rate names the command that measures it. GPU hours are not measured: they are counted floating-point operations divided
by the share of a GPU's peak that such models reach.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence

from data_prep.generate import models
from data_prep.generate.cost import estimate
from data_prep.generate.settings import GenerateSettings, QuotaSettings
from jobs.progress_line import duration

AS_OF = datetime.date(2026, 11, 24)  # prices and models in the documents are those of this day
PRODUCTS = (1_000, 10_000, 100_000, 147_702, 1_000_000, 10_000_000, 100_000_000)
QUESTIONS = 5

LISTINGS_A_SECOND = 24_000  # python -m benchmarks.ingest, one core
IMAGES_A_SECOND = 1_800  # python -m benchmarks.validation, one core; images of ABO's small size
CURATE_SECONDS, CURATE_BYTES = 0.4e-3, 12_300  # per product, measured with 100,000 of them
# Bytes on disk per product: python -m tests.chaos.load writes such runs.
RECORD_BYTES = {"1_prepare": 250, "2_validate": 390, "3_generate": 900, "4_curate": 1_700, "7_evaluate": 670}
LOOP_BYTES = 200  # a task's memory per item of its shard: docs/reliability.md, Load
# GFLOP of BLIP. Image: 577 tokens through ViT-B, and the keys and values of 12 layers. Question: 12 question and 3 answer tokens
# through two BERTs. The backward pass covers the text layers only, since the vision tower is frozen: twice their forward pass.
IMAGE_GFLOP, QUESTION_GFLOP = 114.0, 3.3
EPOCHS, TRAIN_SHARE, TEST_SHARE = 3, 0.7, 0.2
GPUS = {
    "T4": (65e12, 0.25),
    "A100": (312e12, 0.30),
}  # FLOP/s: peak in half precision, and the share of it that is assumed


def training_hours(products: int, gpu: str) -> float:
    """Hours of fine-tuning BLIP with LoRA."""
    flop = (IMAGE_GFLOP + 3 * QUESTIONS * QUESTION_GFLOP) * 1e9 * products * TRAIN_SHARE * EPOCHS
    peak, share = GPUS[gpu]
    return flop / (peak * share) / 3600


def answering_hours(products: int, gpu: str) -> float:
    """Hours of answering the test split with base and adapter in one pass."""
    flop = (IMAGE_GFLOP + 2 * QUESTIONS * QUESTION_GFLOP) * 1e9 * products * TEST_SHARE
    peak, share = GPUS[gpu]
    return flop / (peak * share) / 3600


def shards(products: int) -> int:
    """Shards of a stage: about 5,000 products each, at most 1,000."""
    return max(1, min(1_000, products // 5_000))


def table(rows: Sequence[tuple[str, Callable[[int], str]]]) -> str:
    """A Markdown table with a column per number of products."""
    lines = ["| products | " + " | ".join(f"{n:,}" for n in PRODUCTS) + " |"]
    lines.append("| --- |" + " ---: |" * len(PRODUCTS))
    lines += [f"| {name} | " + " | ".join(value(n) for n in PRODUCTS) + " |" for name, value in rows]
    return "\n".join(lines)


def models_table() -> str:
    """The cards of generator models, with their prices on `AS_OF`."""
    lines = [
        "| model | thinking (default) | tokens of an image: low, medium, high | $ per million tokens, in / out | flex and batch | answers until |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for card in models.cards().values():
        levels = ", ".join(card.levels) + f" ({card.default})" if card.levels else "–"
        last = card.shutdown - datetime.timedelta(1) if card.shutdown else None
        ending = f"{last}, then {'404' if card.after == 'error' else card.successor + ' answers'}" if last else "–"
        whole, half = (_rates(models.list_price(card.name, tier, AS_OF)) for tier in ("standard", "batch"))
        later = models.list_price(card.name, "standard", datetime.date(AS_OF.year + 1, 1, 1))
        if whole != _rates(later) and not card.is_shut_down(AS_OF):
            whole += f"; in {AS_OF.year + 1}: {_rates(later)}"
        tokens = ", ".join(f"{count:,}" for count in card.image_tokens.values())
        lines.append(f"| {card.name} | {levels} | {tokens} | {whole} | {half} | {ending} |")
    return "\n".join(lines)


def _rates(price: models.Price | None) -> str:
    return f"{price.input:g} / {price.output:g}" if price else "–"


def money() -> str:
    """What Gemini costs, in dollars and time."""
    quota = QuotaSettings(requests_per_minute=2_000, tokens_per_minute=4_000_000)
    lite = GenerateSettings(quota=quota, concurrency=64, shards=4)
    flash = lite.model_copy(update={"model": "gemini-3.8-flash", "thinking": "low"})

    def dollars(settings: GenerateSettings, **changes: object) -> Callable[[int], str]:
        def cell(n: int) -> str:
            spent = estimate(n, settings.model_copy(update=changes)).dollars or 0.0
            return f"{spent:,.0f}" if spent >= 100 else f"{spent:,.2f}"

        return cell

    return table(
        [
            ("requests", lambda n: f"{estimate(n, lite).requests:,}"),
            ("dollars, gemini-3.5-flash-lite", dollars(lite)),
            ("dollars, the same, flex or batch", dollars(lite, tier="batch")),
            ("dollars, the same, images at high resolution", dollars(lite, media_resolution="high")),
            ("dollars, gemini-3.8-flash, thinking: low", dollars(flash)),
            ("time at 2,000 requests and 4 M tokens per minute", lambda n: duration(3600 * estimate(n, lite).hours)),
        ]
    )


def work() -> str:
    """Time on processors and GPUs."""
    rows: list[tuple[str, Callable[[int], str]]] = [
        ("prepare, one core", lambda n: duration(n / LISTINGS_A_SECOND)),
        ("validate, core time", lambda n: duration(n / IMAGES_A_SECOND)),
        ("curate, one core", lambda n: duration(n * CURATE_SECONDS)),
    ]
    for gpu in GPUS:
        rows.append((f"train BLIP, {gpu}", lambda n, gpu=gpu: duration(3600 * training_hours(n, gpu))))  # type: ignore[misc]
        rows.append((f"evaluate base and adapter, {gpu}", lambda n, gpu=gpu: duration(3600 * answering_hours(n, gpu))))  # type: ignore[misc]
    return table(rows)


def space() -> str:
    """Files, disk space and memory."""
    return table(
        [
            ("shards per stage", lambda n: f"{shards(n):,}"),
            ("files and folders of the run, about", lambda n: f"{3 * 4 * shards(n) + 100:,}"),
            ("folders that count dollars", lambda n: f"{_dollar_folders(n):,}"),
            ("records on disk, all stages", lambda n: size(n * sum(RECORD_BYTES.values()))),
            ("memory of a sharded stage's task", lambda n: size(60e6 + LOOP_BYTES * n / shards(n))),
            ("memory of prepare", lambda n: size(100e6 + 800 * n)),
            ("memory of curate", lambda n: size(60e6 + CURATE_BYTES * n)),
        ]
    )


def _dollar_folders(products: int) -> int:
    dollars = estimate(products, GenerateSettings()).dollars
    return round(1000 * min(dollars, 10) + 100 * max(0, min(dollars, 100) - 10) + 10 * max(0, dollars - 100))


def size(count: float) -> str:
    """Bytes with a unit that suits their size."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def main() -> None:
    """Print the tables."""
    os.environ[models.TODAY] = AS_OF.isoformat()
    for make in (models_table, money, work, space):
        print(f"{make()}\n")


if __name__ == "__main__":
    main()
