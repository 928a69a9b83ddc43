"""The command line. Thin: every verb reads its arguments and calls one function.

Exit codes: 0 done; 1 something failed, which is named with its log; 2 wrong usage or configuration; 130 interrupted
(the same command again resumes).
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console

from data_prep.records import UserError

app = typer.Typer(
    help="From raw Amazon Berkeley Objects listings to a fine-tuned product-VQA model and a report about it.",
    epilog="The same command again resumes a run: what is done is skipped.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class ClusterName(StrEnum):
    """Where tasks run."""

    local = "local"
    slurm = "slurm"


RunDirArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder that was given as --run-dir.")]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    cluster: Annotated[ClusterName | None, typer.Option(help="Where the tasks run.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; without it jobs/configs/abo.yaml.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; without it runs/<name of the config>.")
    ] = None,
    stages: Annotated[str | None, typer.Option(help="Only these, such as prepare,validate.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Tasks of every sharded stage.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Tasks at once on this machine; without it one a core.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override the configuration.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Run the pipeline (with --cluster), or one of the verbs below."""
    if context.invoked_subcommand is not None:
        return
    if cluster is None:
        raise click.UsageError("Say where to run: --cluster local or --cluster slurm (or see --help for the verbs).")
    from jobs import runner

    request = runner.Request(config, run_dir, stages, shards, workers, tuple(overrides or ()), dry_run)
    raise typer.Exit(runner.launch(request, cluster.value, out))


@app.command()
def status(
    run_dir: RunDirArgument,
    json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """How far a run is: items, shards, rates, money, errors."""
    from jobs import runner

    runner.show_status(run_dir, out, as_json=json)


@app.command()
def report(run_dir: RunDirArgument) -> None:
    """Write the report of what a run has so far."""
    from jobs import runner

    runner.write_report(run_dir, out)


@app.command()
def demo(
    run_dir: Annotated[Path, typer.Option(help="Where the demo's run goes.")] = Path("runs/demo"),
    workers: Annotated[int | None, typer.Option(min=1, help="Tasks at once; without it one a core.")] = None,
) -> None:
    """The whole pipeline on a small rendered catalogue: no ABO, no key, no GPU, no download."""
    from jobs import demo as demo_module

    raise typer.Exit(demo_module.run_demo(run_dir, workers, out))


def main() -> int:
    """Run the command line; the exit code."""
    try:
        result = app(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Exit as stop:
        return int(stop.exit_code)
    except click.UsageError as error:
        err.print(f"error: {error.format_message()}", style="red")
        return 2
    except UserError as error:
        err.print(f"error: {error}", style="red")
        return 2
    except KeyboardInterrupt:
        err.print("interrupted; the same command again resumes")
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe (head, less) went away
        return 0
