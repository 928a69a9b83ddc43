"""``launch.py plan``: what a run will cost, before anything is sent: requests, tokens, dollars, hours; memory of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.abo import listings
from data_prep.generate import cost, models
from data_prep.generate.settings import GenerateSettings
from data_prep.records import Rejected
from jobs.config import DEFAULT_CONFIG, Config, load_config
from jobs.verbs.status import duration
from vqa.settings import ModelSettings

GB = 1e9


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What training a model at full size needs, as `python -m benchmarks.training_memory KIND` counts it."""

    parameters: float
    lora_per_rank: float  # trainable parameters for each unit of rank, with the default targets
    whole: float  # parameters trained whole beside the adapter: ViLT's head
    per_question: float  # bytes kept for the backward pass in fp32; a GPU's autocast needs less
    per_image: float  # likewise
    copies: float  # bytes of the 2-byte copies of frozen weights that autocast makes, whatever the batch


SIZES = {
    "blip": ModelSize(361.2e6, 147_456, 0.0, per_question=14.2e6, per_image=64.3e6, copies=470e6),
    "vilt": ModelSize(117.6e6, 55_296, 6.0e6, per_question=142e6, per_image=0.0, copies=181e6),
}
CUDA_CONTEXT = 0.6e9  # bytes


def show_plan(config_path: Path | None, overrides: Sequence[str], console: Console) -> None:
    """Print the plan of a configuration.

    Raises:
        UserError: the configuration is wrong, or ABO is not there.
    """
    config = load_config(config_path or DEFAULT_CONFIG, overrides)
    products = count_products(config)
    console.print(f"{products:,} products qualify (images are checked later; each broken one saves a request).")
    _show_generate(config, products, console)
    _show_training(config, console)
    console.print("Nothing was sent, nothing was written.")


def count_products(config: Config) -> int:
    """The number of products that stage prepare would keep."""

    def ignore(_: Rejected) -> None:
        pass

    return sum(1 for _ in listings.prepare(listings.find_sources(config.data), config.prepare, ignore))


def _show_generate(config: Config, products: int, console: Console) -> None:
    settings = config.generate
    if settings.stand_in is not None:
        console.print("generate: a stand-in answers; nothing is paid.")
        return
    estimate = cost.estimate(products, settings)
    table = Table(title=f"generate: {settings.model} through {settings.generator}", title_justify="left")
    for name in ("requests", "tokens in", "tokens out", "dollars", "at most", "time", "bound by"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{estimate.requests:,}",
        f"{estimate.input_tokens:,}",
        f"{estimate.output_tokens:,}",
        _money(estimate.dollars, estimate.margin),
        _money(estimate.at_most),
        duration(3600 * estimate.hours),
        estimate.limited_by,
    )
    console.print(table)
    for line in _assumptions(settings, estimate):
        console.print(line, markup=False)


def _money(dollars: float | None, margin: float = 0.0) -> str:
    if dollars is None:
        return "unknown"
    return f"${dollars:,.2f}" + (f" ± {margin:,.2f}" if margin else "")


def _assumptions(settings: GenerateSettings, estimate: cost.Estimate) -> Iterator[str]:
    """What the figures rest on, what the model's card warns of, and the terms; one line each."""
    day, card = models.today(), models.card(settings.model)
    price = cost.price(settings, tier=settings.tier)
    if price is None:
        yield (
            "The price is unknown, and no cap (max_dollars) is accepted. Set generate.prices, such as {input: 0.30, output: 2.50} in "
            "dollars per million tokens; {input: 0, output: 0} for a server of your own."
        )
    else:
        source = "generate.prices" if settings.prices else f"genai-prices {version('genai-prices')}"
        yield f"Price on {day}, tier {settings.tier}: {price} ({source}). Thoughts are billed as output."
    if estimate.measured:
        yield f"Measured on {estimate.measured} products of the probe; ± is a 95% interval."
    else:
        yield (
            f"By arithmetic: {cost.image_tokens(settings)} tokens an image (media_resolution: {settings.sent_resolution or 'not sent'}), "
            f"{cost.PROMPT_TOKENS} the prompt, {cost.OUTPUT_TOKENS} a reply, and thoughts (thinking: "
            f"{settings.sent_thinking or 'not sent'}), whose number is assumed. Measure it: launch.py plan --probe 20"
        )
    yield (
        f'"At most" is if every product took {settings.max_asks} replies of {settings.max_output_tokens:,} tokens each, the limit of '
        f"max_output_tokens."
    )
    if settings.max_dollars is not None and estimate.dollars is not None:
        enough = "above" if settings.max_dollars >= estimate.dollars + estimate.margin else "BELOW"
        yield f"The cap of ${settings.max_dollars:,.2f} is {enough} the estimate."
    for line in models.notices(settings.model, day):
        yield f"warning: {line}"
    if card and card.sampling == "ignored" and settings.temperature is not None:
        yield f"warning: {settings.model} ignores generate.temperature."
    yield from models.terms_lines(settings.model)


def _show_training(config: Config, console: Console) -> None:
    table = Table(title="train: memory by arithmetic, in GB", title_justify="left")
    for name in ("model", "weights", "adapter and optimizer", "activations", "CUDA", "total", "fits in 16 GB"):
        table.add_column(name, justify="right")
    for name, model in config.models.items():
        parts = training_memory(model)
        if parts is None:
            table.add_row(name, *["unknown"] * 6)
            continue
        total = sum(parts)
        table.add_row(
            name, *(f"{part / GB:.2f}" for part in parts), f"{total / GB:.2f}", "yes" if total < 14 * GB else "no"
        )
    if table.row_count:
        console.print(table)
        console.print("Weights stay fp32 under autocast; batch sizes as configured.")


def training_memory(model: ModelSettings) -> tuple[float, float, float, float] | None:
    """Bytes of the weights, of the adapter with gradient and optimizer, of activations, of the CUDA context; None: unknown."""
    size = SIZES.get(model.kind)
    if size is None:
        return None
    trained = size.lora_per_rank * model.lora.r + size.whole
    adapter = 16 * trained  # weight, gradient and Adam's two moments, 4 bytes each
    worst = size.per_question + size.per_image  # each question about an image of its own
    return 4 * size.parameters, adapter, model.batch_size * worst + size.copies, CUDA_CONTEXT
