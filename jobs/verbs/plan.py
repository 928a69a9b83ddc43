"""``launch.py plan``: what a run will cost: requests, tokens, dollars, hours; memory of training.

By arithmetic nothing is sent. ``--probe 20`` asks about twenty products first, and plans from what they took.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import typer
from rich.console import Console
from rich.table import Table

from data_prep.abo import listings
from data_prep.files import write_json
from data_prep.generate import cost, models
from data_prep.generate.settings import GenerateSettings
from data_prep.outcomes import UserError
from data_prep.records import Rejected
from jobs.backends.stop import StopFlag
from jobs.config import Config
from jobs.options import PlanRequest
from jobs.progress_line import duration
from jobs.run.layout import RunDir
from jobs.run.run import open_run
from jobs.stages.probe import Probe
from jobs.stages.verify import blind_shape, seen_shape
from jobs.verbs.launch import resolve, sole_writer
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
    features: float  # numbers that the frozen tower makes of an image, which are stored; 0: nothing is
    copies: float  # bytes of the 2-byte copies of frozen weights that autocast makes, whatever the batch


SIZES = {
    "blip": ModelSize(361.2e6, 147_456, 0.0, per_question=14.2e6, per_image=64.3e6, features=577 * 768, copies=470e6),
    "vilt": ModelSize(117.6e6, 55_296, 6.0e6, per_question=142e6, per_image=0.0, features=0, copies=181e6),
}
CUDA_CONTEXT = 0.6e9  # bytes


def show_plan(request: PlanRequest, console: Console) -> None:
    """Print the plan of a configuration.

    Raises:
        UserError: the configuration is wrong, ABO is not there, or the probe's requests cannot succeed.
    """
    products = None
    config, folder = resolve(request.config, request.run_dir, request.overrides or ())
    stage = Probe(RunDir(folder.resolve()), config, request.probe or 0)
    if request.probe and not ask_probe(stage, config, request, console):
        return
    if config.data.dataset_csv:
        console.print(f"generate: the questions of {config.data.dataset_csv} are there; nothing is paid.", markup=False)
    else:
        products = count_products(config)
        console.print(f"{products:,} products qualify (images are checked later; each broken one saves a request).")
        _show_generate(config, products, stage.usage() if request.probe else [], console)
        _show_verify(config, products, console)
    _show_training(config, console)
    for line in _features(config, products):
        console.print(line, markup=False)
    if not request.probe:
        console.print("Nothing was sent, nothing was written.")


def ask_probe(stage: Probe, config: Config, request: PlanRequest, console: Console) -> bool:
    """Send the probe's requests, once the user has agreed; False where they did not.

    Raises:
        UserError: nobody can be asked, or no request can succeed now.
    """
    count = len(stage.sample)
    most = cost.estimate(count, stage.config.generate)
    stage.check_settings(redo=True)
    price = (
        "what that costs is unknown"
        if most.at_most is None
        else f"at most ${most.at_most:,.2f}, about ${most.dollars:,.2f}"
    )
    console.print(
        f"The probe asks {config.generate.model} about {count:,} products, in at most {count * config.generate.max_asks:,} requests: "
        f"{price}. The replies are kept in {stage.run_dir.path}, and the run does not ask again.",
        markup=False,
    )
    if not request.yes:
        if not sys.stdin.isatty():
            raise UserError("Nobody is there to agree: add --yes to send the probe's requests.")
        if not typer.confirm("Send them?"):
            console.print("Nothing was sent.")
            return False
    with sole_writer(stage.run_dir):
        stage.check_settings(redo=True)
        run, notes = open_run(stage.run_dir.path, config, sys.argv)
        for note in notes:
            console.print(f"note: {note}", style="yellow", markup=False)
        whole = stage.ask(StopFlag().install())
        write_json(run.probe, {"products": stage.usage()})
    if not whole:
        console.print("The probe was stopped; the same command again goes on.")
    return True


def count_products(config: Config) -> int:
    """The number of products that stage prepare would keep."""

    def ignore(_: Rejected) -> None:
        pass

    return sum(1 for _ in listings.prepare(listings.find_sources(config.data), config.prepare, ignore))


def _show_generate(config: Config, products: int, probe: Sequence[cost.ProductUsage], console: Console) -> None:
    settings = config.generate
    if settings.stand_in is not None:
        console.print("generate: a stand-in answers; nothing is paid.")
        return
    estimate = cost.estimate(products, settings, probe)
    console.print(_priced(f"generate: {settings.model} through {settings.generator}", {"": estimate}))
    if probe:
        console.print(_measured(probe))
    for line in _assumptions(settings, estimate):
        console.print(line, markup=False)


def _show_verify(config: Config, products: int, console: Console) -> None:
    """Second opinions; a product that drops out before saves its requests."""
    settings = config.verify
    if not settings.enabled:
        console.print("verify: off; no second opinions are asked (verify.enabled).")
        return
    if settings.stand_in is not None:
        console.print("verify: a stand-in answers; nothing is paid.")
        return
    asked = round(products * (config.curate.test_share if settings.split == "test" else 1))
    blind = cost.estimate(-(-asked // settings.blind_products), settings, shape=blind_shape(settings.blind_products))
    seen = cost.estimate(asked, settings, shape=seen_shape())
    title = f"verify: {settings.model} about the {settings.split} questions of {asked:,} products"
    console.print(_priced(title, {"with image": seen, "without": blind}))
    if settings.max_dollars is not None:
        console.print("max_dollars is one cap for the run: what generate spends counts against it.")


def _priced(title: str, estimates: Mapping[str, cost.Estimate]) -> Table:
    """A line of requests, tokens, dollars and hours for each kind of request."""
    table = Table(title=title, title_justify="left")
    if len(estimates) > 1:
        table.add_column("opinions")
    for name in ("requests", "tokens in", "tokens out", "dollars", "at most", "time", "bound by"):
        table.add_column(name, justify="right")
    for kind, estimate in estimates.items():
        table.add_row(
            *([kind] if len(estimates) > 1 else []),
            f"{estimate.requests:,}",
            f"{estimate.input_tokens:,}",
            f"{estimate.output_tokens:,}",
            _money(estimate.dollars, estimate.margin),
            _money(estimate.at_most),
            duration(3600 * estimate.hours),
            estimate.limited_by,
        )
    return table


def _measured(probe: Sequence[cost.ProductUsage]) -> str:
    """What the probe found, in a sentence."""
    total = sum(probe, cost.ProductUsage())
    mean = [
        getattr(total, name) / len(probe) for name in ("requests", "input_tokens", "output_tokens", "thought_tokens")
    ]
    usable = sum(one.usable for one in probe)
    return (
        f"Probe: {len(probe)} products answered, {usable} usable. On average a product took {mean[0]:.2f} requests, {mean[1]:,.0f} "
        f"tokens in and {mean[2]:,.0f} out, {mean[3]:,.0f} of them thoughts."
    )


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
        yield f"From {estimate.measured} products of the probe; ± is a 95% interval."
    else:
        yield (
            f"By arithmetic: {cost.image_tokens(settings)} tokens an image (media_resolution: {settings.sent_resolution or 'not sent'}), "
            f"{cost.PROMPT_TOKENS} the prompt, {cost.OUTPUT_TOKENS} a reply, and {cost.assumed_thoughts(settings)} of thoughts (thinking: "
            f"{settings.sent_thinking or 'not sent'}), which is a guess. Measure it: launch.py plan --probe 20"
        )
    yield (
        f'"At most" assumes max_asks ({settings.max_asks}) replies a product, each cut off at its limit: '
        f"{settings.max_output_tokens:,} tokens (max_output_tokens), twice as many for each further one."
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


def _features(config: Config, images: int | None) -> Iterator[str]:
    """How much the stored features of each model take, and what they save; a line each."""
    for name, model in config.models.items():
        size, settings = SIZES.get(model.kind), model.features or config.features
        if size is None or not size.features or not settings.max_gb:
            continue
        count, told = (images, f"{images:,} images") if images else (1000, "each 1,000 images")
        half, whole = (size.features * count * bytes_each / GB for bytes_each in (2, 4))
        yield (
            f"{name}: image features of {told} take {half:.1f} GB on disk in half precision, {whole:.1f} GB in fp32; at most "
            f"{settings.max_gb:g} GB are kept (features.max_gb). Each image is then encoded once, not in each of "
            f"{config.train.epochs:g} epochs and each validation."
        )


def training_memory(model: ModelSettings) -> tuple[float, float, float, float] | None:
    """Bytes of the weights, of the adapter with gradient and optimizer, of activations, of the CUDA context; None: unknown."""
    size = SIZES.get(model.kind)
    if size is None:
        return None
    trained = size.lora_per_rank * model.lora.r + size.whole
    adapter = 16 * trained  # weight, gradient and Adam's two moments, 4 bytes each
    worst = size.per_question + size.per_image  # each question about an image of its own
    return 4 * size.parameters, adapter, model.batches[0] * worst + size.copies, CUDA_CONTEXT
