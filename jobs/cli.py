"""The command line. Thin: every verb reads its arguments and calls one function.

Exit codes: 0 done; 1 something failed, which is named with its log; 2 wrong usage or configuration; 130 interrupted
(the same command again resumes).
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data_prep.outcomes import UserError

app = typer.Typer(
    help="From raw Amazon Berkeley Objects listings to a fine-tuned product-VQA model and a report about it.",
    epilog="The same command again resumes a run: what is done is skipped.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
FILE_WIDTH = 140  # columns of what is written into a file or a pipe, which has no width of its own
out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class ClusterName(StrEnum):
    """Where tasks run."""

    local = "local"
    slurm = "slurm"


# Wrong usage of any kind. Newer versions of typer carry their own click, so the class is reached through typer's.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

RunDirArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder that was given as --run-dir.")]


ConfigOption = Annotated[Path | None, typer.Option(help="YAML file; without it jobs/configs/abo.yaml.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override the configuration.")
]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    cluster: Annotated[ClusterName | None, typer.Option(help="Where the tasks run.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; without it jobs/configs/abo.yaml.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; without it runs/<name of the config>.")
    ] = None,
    stages: Annotated[str | None, typer.Option(help="Only these, such as prepare,validate.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="slurm: the site, a name from slurm/profiles or a file; without it generic.")
    ] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Tasks of every sharded stage.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Tasks at once on this machine; without it one a core.")
    ] = None,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Run the pipeline (with --cluster), or one of the verbs below."""
    if context.invoked_subcommand is not None:
        return
    if cluster is None:
        raise typer.BadParameter("Say where to run: --cluster local or --cluster slurm (or see --help for the verbs).")
    from jobs.verbs import launch

    request = launch.Request(config, run_dir, stages, shards, workers, tuple(overrides or ()), dry_run, profile)
    raise typer.Exit(launch.launch(request, cluster.value, out))


@app.command()
def status(
    run_dir: RunDirArgument,
    json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds until Ctrl-C.")] = False,
) -> None:
    """How far a run is: items, shards, rates, money, errors."""
    from jobs.verbs import launch

    launch.show_status(run_dir, out, as_json=json, watch=watch)


@app.command()
def report(run_dir: RunDirArgument) -> None:
    """Write the report of what a run has so far."""
    from jobs.verbs import launch

    launch.write_report(run_dir, out)


@app.command()
def logs(
    run_dir: RunDirArgument,
    stage: Annotated[str | None, typer.Option(help="Only this stage.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only tasks whose work is not complete.")] = False,
) -> None:
    """Which log to read: the newest one of every task, with its last error."""
    from jobs.verbs import launch

    launch.show_logs(run_dir, stage, failed, out)


@app.command()
def cancel(run_dir: RunDirArgument) -> None:
    """Cancel the jobs of a run in SLURM's queue, and no others."""
    from jobs.verbs import launch

    raise typer.Exit(launch.cancel(run_dir, out))


@app.command()
def plan(
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """What a run will cost: requests, tokens, dollars, hours; memory of training. Sends nothing."""
    from jobs.verbs import plan

    plan.show_plan(config, tuple(overrides or ()), out)


@app.command()
def agreement(
    run_dir: RunDirArgument,
    products: Annotated[int, typer.Option(min=1, help="How many; each is paid for again.")] = 50,
) -> None:
    """Ask about a sample of products a second time: does the generator say the same again?"""
    from jobs.verbs import agreement

    raise typer.Exit(agreement.ask_twice(run_dir, products, out))


@app.command()
def doctor(
    cluster: Annotated[ClusterName, typer.Option(help="Where the tasks would run.")] = ClusterName.local,
    config: ConfigOption = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; without it runs/<name of the config>.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="slurm: the site.")] = None,
    overrides: SetOption = None,
) -> None:
    """Will it work here? Looks before anything is queued, and says what to do."""
    from jobs.verbs import launch

    raise typer.Exit(launch.diagnose(config, run_dir, profile, tuple(overrides or ()), cluster.value, out))


@app.command()
def fetch(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Download the models' weights into the cache, on a machine that has internet (a login node)."""
    from jobs.verbs import tools

    tools.fetch(config, tuple(overrides or ()), out)


@app.command()
def predict(
    csv_path: Annotated[
        Path | None, typer.Option("--csv_path", "--csv-path", help="Table with image_name,question[,answer].")
    ] = None,
    image_dir: Annotated[Path | None, typer.Option("--image_dir", "--image-dir", help="Folder of its images.")] = None,
    output: Annotated[Path, typer.Option(help="Takes image_name,question,answer,generated_answer.")] = Path(
        "results.csv"
    ),
    image: Annotated[Path | None, typer.Option(help="One image, instead of a table.")] = None,
    question: Annotated[str | None, typer.Option(help="One question about it.")] = None,
    model: Annotated[str, typer.Option(help="blip, vilt.")] = "blip",
    weights: Annotated[
        str | None, typer.Option(help="Hub name or folder; without it the adapter's base, or the published ones.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter.")] = None,
) -> None:
    """Answer the questions of a table, or one question about one image."""
    from jobs.verbs import tools

    request = tools.Prediction(model, weights, adapter, image_dir, csv_path, output, image, question)
    raise typer.Exit(tools.predict(request, out, err))


@app.command()
def merge(
    adapter: Annotated[Path, typer.Option(help="Folder of a LoRA adapter.")],
    output: Annotated[Path, typer.Option(help="Takes the model; must not be there yet.")],
    model: Annotated[str, typer.Option(help="blip, vilt.")] = "blip",
    weights: Annotated[
        str | None, typer.Option(help="Hub name or folder; without it the adapter's base, or the published ones.")
    ] = None,
) -> None:
    """Fold an adapter into its base: one folder that transformers loads, without peft."""
    from jobs.verbs import tools

    tools.merge(model, weights, adapter, output, out)


@app.command()
def score(
    table: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or JSONL.")],
    truth: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the true answers.")] = "answer",
    prediction: Annotated[str, typer.Option(metavar="COLUMN", help="Column to score.")] = "generated_answer",
    cluster: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that names the product or image, for the intervals.")
    ] = None,
    bertscore: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Hub name or folder of the BERT for BERTScore; without it none.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Score any table of answers, by whatever model, with the metrics and intervals of the report."""
    from jobs.verbs import tools

    tools.score(table, truth, prediction, cluster, bertscore, json, out)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B")],
    model: Annotated[str | None, typer.Option(help="Which model, where the runs have several.")] = None,
    variant: Annotated[str, typer.Option(help="base or lora.")] = "lora",
    json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Two runs on the questions that they share, paired."""
    from jobs.verbs import tools

    tools.compare(run_a, run_b, model, variant, json, out)


@app.command()
def demo(
    run_dir: Annotated[Path, typer.Option(help="Where the demo's run goes.")] = Path("runs/demo"),
    workers: Annotated[int | None, typer.Option(min=1, help="Tasks at once; without it one a core.")] = None,
) -> None:
    """The whole pipeline on a small rendered catalogue: no ABO, no key, no GPU, no download."""
    from jobs.verbs import demo as demo_module

    raise typer.Exit(demo_module.run_demo(run_dir, workers, out))


def main() -> int:
    """Run the command line; the exit code."""
    try:
        result = app(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Exit as stop:
        return int(stop.exit_code)
    except UsageError as error:
        err.print(f"error: {error.format_message()}", style="red", markup=False)  # type: ignore[attr-defined]
        return 2
    except UserError as error:
        err.print(f"error: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        err.print("interrupted; the same command again resumes")
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe (head, less) went away
        return 0
