"""What 10³ to 10⁸ products come to, from measured rates: the tables of docs/scale.md.

    python -m benchmarks.scale

A rate has the command that measures it. GPU hours are arithmetic: counted floating-point operations, divided by a GPU's peak and a
share of it that such models reach.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_prep.generate.cost import estimate
from data_prep.generate.settings import BatchSettings, GenerateSettings, QuotaSettings
from jobs.verbs.launch import duration

PRODUCTS = (1_000, 10_000, 100_000, 147_702, 1_000_000, 10_000_000, 100_000_000)
QUESTIONS = 5

LISTINGS_A_SECOND = 24_000  # python -m benchmarks.ingest, one core
IMAGES_A_SECOND = 1_800  # python -m benchmarks.validation, one core; images of ABO's small size
CURATE_SECONDS, CURATE_BYTES = 0.4e-3, 12_300  # a product; of a task with 100,000 of them
# Bytes on disk, a product: python -m tests.chaos.load writes such runs.
RECORD_BYTES = {"1_prepare": 250, "2_validate": 390, "3_generate": 900, "4_curate": 1_700, "6_evaluate": 670}
LOOP_BYTES = 200  # of a task's memory, an item of its shard: docs/reliability.md, Load
# 10⁹ operations: 577 image tokens through ViT-B and the 12 layers' keys and values; 12 question and 3 answer tokens through
# two BERTs. A training step goes back through the text layers only: twice their forward pass.
IMAGE_GFLOP, QUESTION_GFLOP = 114.0, 3.3
EPOCHS, TRAIN_SHARE, TEST_SHARE = 3, 0.7, 0.2
GPUS = {"T4": (65e12, 0.25), "A100": (312e12, 0.30)}  # peak in half precision, share of it that is assumed


def training_hours(products: int, gpu: str) -> float:
    """LoRA on BLIP."""
    flop = (IMAGE_GFLOP + 3 * QUESTIONS * QUESTION_GFLOP) * 1e9 * products * TRAIN_SHARE * EPOCHS
    peak, share = GPUS[gpu]
    return flop / (peak * share) / 3600


def answering_hours(products: int, gpu: str) -> float:
    """Base and adapter in one pass over the test split."""
    flop = (IMAGE_GFLOP + 2 * QUESTIONS * QUESTION_GFLOP) * 1e9 * products * TEST_SHARE
    peak, share = GPUS[gpu]
    return flop / (peak * share) / 3600


def shards(products: int) -> int:
    """Of each sharded stage: some 5,000 products a task, at most 1,000 tasks."""
    return max(1, min(1_000, products // 5_000))


def table(rows: Sequence[tuple[str, Callable[[int], str]]]) -> str:
    """Markdown with a column for each number of products."""
    lines = ["| products | " + " | ".join(f"{n:,}" for n in PRODUCTS) + " |"]
    lines.append("| --- |" + " ---: |" * len(PRODUCTS))
    lines += [f"| {name} | " + " | ".join(value(n) for n in PRODUCTS) + " |" for name, value in rows]
    return "\n".join(lines)


def money() -> str:
    """What Gemini takes."""
    quota = QuotaSettings(requests_per_minute=2_000, tokens_per_minute=4_000_000)
    alone = GenerateSettings(generator="google_genai", quota=quota, concurrency=64, shards=4)
    batch = alone.model_copy(update={"batch": BatchSettings()})
    return table(
        [
            ("requests", lambda n: f"{estimate(n, alone).requests:,}"),
            ("dollars, one by one", lambda n: f"{estimate(n, alone).dollars:,.0f}"),
            ("dollars, in batches", lambda n: f"{estimate(n, batch).dollars:,.0f}"),
            ("time at 2,000 requests and 4 M tokens a minute", lambda n: duration(3600 * estimate(n, alone).hours)),
        ]
    )


def work() -> str:
    """What processors and GPUs take."""
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
    """Files and memory."""
    return table(
        [
            ("shards of a stage", lambda n: f"{shards(n):,}"),
            ("files and folders of the run, about", lambda n: f"{3 * 4 * shards(n) + 100:,}"),
            ("of the cap in dollars, folders", lambda n: f"{_dollar_folders(n):,}"),
            ("records on disk, all stages", lambda n: size(n * sum(RECORD_BYTES.values()))),
            ("memory of a task of a sharded stage", lambda n: size(60e6 + LOOP_BYTES * n / shards(n))),
            ("memory of prepare", lambda n: size(100e6 + 800 * n)),
            ("memory of curate", lambda n: size(60e6 + CURATE_BYTES * n)),
        ]
    )


def _dollar_folders(products: int) -> int:
    dollars = estimate(products, GenerateSettings()).dollars
    return round(1000 * min(dollars, 10) + 100 * max(0, min(dollars, 100) - 10) + 10 * max(0, dollars - 100))


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def main() -> None:
    """Print the tables."""
    for make in (money, work, space):
        print(f"{make()}\n")


if __name__ == "__main__":
    main()
