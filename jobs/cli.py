"""The command line. Thin: every verb reads its arguments and calls one function.

Exit codes: 0 done; 1 something failed, which is named with its log; 2 wrong usage or configuration; 130 interrupted
(the same command again resumes).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data_prep.outcomes import UserError
from jobs.options import (
    AuditRequest,
    CompareRequest,
    ConfigOption,
    DoctorRequest,
    JsonOption,
    LaunchRequest,
    ModelOption,
    PlanRequest,
    PredictRequest,
    ResumeRequest,
    RunDirArgument,
    RunDirOption,
    ScoreRequest,
    SetOption,
    ToOption,
    WeightsOption,
    WorkersOption,
    takes,
)

app = typer.Typer(
    help="From raw Amazon Berkeley Objects listings to a fine-tuned product-VQA model and a report about it.",
    epilog="What is done is kept: resume, or the same command again, goes on from there.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
INTERRUPTED = 130  # exit code of a command that Ctrl-C ended
FILE_WIDTH = 140  # columns of what is written into a file or a pipe, which has no width of its own
out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False)
# Wrong usage of any kind. Newer versions of typer carry their own click, so the class is reached through typer's.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


@app.callback(invoke_without_command=True)
@takes(LaunchRequest)
def run(context: typer.Context, request: LaunchRequest) -> None:
    """Run the pipeline (with --cluster), or one of the verbs below."""
    if context.invoked_subcommand is not None:
        return
    if request.cluster is None:
        raise typer.BadParameter("Say where to run: --cluster local or --cluster slurm (or see --help for the verbs).")
    from jobs.verbs.launch import launch

    raise typer.Exit(launch(request, out))


@app.command()
@takes(ResumeRequest)
def resume(context: typer.Context, request: ResumeRequest) -> None:
    """Go on with a run as it was launched. Its own configuration holds; --set changes keys of it."""
    from jobs.verbs import launch as verb

    raise typer.Exit(verb.resume(request, out))


@app.command()
def status(
    run_dir: RunDirArgument,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds until Ctrl-C.")] = False,
) -> None:
    """How far a run is: items, rates, loss, money, errors."""
    from jobs.verbs.status import show_status

    show_status(run_dir, out, as_json=json, watch=watch)


@app.command()
def report(
    run_dir: RunDirArgument,
    to: ToOption = None,
) -> None:
    """Write the report of what a run has so far."""
    from jobs.verbs.results.report import write_report

    write_report(run_dir, to, out)


@app.command()
def logs(
    run_dir: RunDirArgument,
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Only this stage (default: all).")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only tasks whose work is not complete.")] = False,
    tail: Annotated[int | None, typer.Option(min=1, metavar="N", help="Print the last N lines of each.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print new lines as they come, until the run ends.")] = False,
) -> None:
    """What the tasks and SLURM said. Names the newest log of every task, with its last error, or prints them."""
    from jobs.verbs import logs as verb

    verb.follow_logs(run_dir, stage, out, tail or 0) if follow else verb.show_logs(run_dir, stage, failed, tail, out)


@app.command()
def cancel(run_dir: RunDirArgument) -> None:
    """Cancel a run's jobs in SLURM's queue. No others are touched."""
    from jobs.verbs import launch as verb

    raise typer.Exit(verb.cancel(run_dir, out))


@app.command()
@takes(PlanRequest)
def plan(context: typer.Context, request: PlanRequest) -> None:
    """What a run will cost. Requests, tokens, dollars, hours, memory of training; sends nothing without --probe."""
    from jobs.verbs.plan import show_plan

    show_plan(request, out)


@app.command("self-consistency")
def self_consistency(
    run_dir: RunDirArgument,
    products: Annotated[int, typer.Option(min=1, metavar="N", help="How many; each is paid for again.")] = 50,
) -> None:
    """Ask about a sample of products again. Says how often the answer is the same; each is paid for again."""
    from jobs.verbs.results.self_consistency import ask_twice

    raise typer.Exit(ask_twice(run_dir, products, out))


@app.command()
@takes(AuditRequest)
def audit(context: typer.Context, request: AuditRequest) -> None:
    """Have people judge test questions. Writes a page with a sample of them; with --verdicts, reads what was said."""
    from jobs.verbs.results import audit as verb

    verb.audit(request, out)


@app.command()
@takes(DoctorRequest)
def doctor(context: typer.Context, request: DoctorRequest) -> None:
    """Check whether it would work here. Looks at data, keys, weights, disk and cluster, and says what to do."""
    from jobs.verbs import doctor as verb

    raise typer.Exit(verb.doctor(request, out))


@app.command()
def fetch(
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Download ABO's listings and small images into it instead.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Where ABO's archives are (default: their publisher).")
    ] = None,
) -> None:
    """Download the models' weights into the cache, or ABO. For a machine with internet, such as a login node."""
    if data is not None:
        from jobs.verbs.data import fetch_data

        fetch_data(data, mirror, out)
        return
    from jobs.verbs import weights as verb

    verb.fetch(config, tuple(overrides or ()), out)


@app.command()
@takes(PredictRequest)
def predict(context: typer.Context, request: PredictRequest) -> None:
    """Answer questions about images. Either a table's, or each --question about each --image; with confidence."""
    from jobs.verbs.results import predict as verb

    raise typer.Exit(verb.predict(request, out, err))


@app.command()
def merge(
    adapter: Annotated[Path, typer.Option(metavar="FOLDER", help="A run's folder, or that of a LoRA adapter.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the model goes; must not exist yet.")],
    model: ModelOption = None,
    weights: WeightsOption = None,
) -> None:
    """Fold an adapter into its base. The result is one folder that transformers loads, without peft."""
    from jobs.verbs.results import predict as verb

    verb.merge(adapter, model, weights, output, out)


@app.command()
@takes(ScoreRequest)
def score(context: typer.Context, request: ScoreRequest) -> None:
    """Score a table of any model's answers. The metrics and intervals are those of the report."""
    from jobs.verbs.results import score as verb

    verb.score(request, out)


@app.command()
@takes(CompareRequest)
def compare(context: typer.Context, request: CompareRequest) -> None:
    """Rank runs and tables. They are compared, paired, on the questions that they share."""
    from jobs.verbs.results import score as verb

    verb.compare(request, out)


@app.command()
def export(
    run_dir: RunDirArgument,
    to: ToOption = None,
    merged: Annotated[bool, typer.Option("--merged", help="Also each adapter folded into its base.")] = False,
) -> None:
    """Write what a run made as folders to publish. Dataset with images, adapters and cards, for the Hugging Face hub."""
    from jobs.verbs.results import export as verb

    if to is None:
        raise typer.BadParameter("Name the new folder: --to FOLDER.")
    verb.export(run_dir, to, merged=merged, out=out)


@app.command("tiny-base")
def tiny_base(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Takes the model; must not be there yet.")],
    kind: Annotated[str, typer.Option(metavar="NAME", help="What it is: blip or vilt.")] = "blip",
    words: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="JSONL with qas, whose words the model is to know; may be repeated."),
    ] = None,
) -> None:
    """Make a tiny model as a base. Taught on drawn images, for a first run without a GPU or a download."""
    from jobs.verbs.weights import make_tiny_base

    make_tiny_base(folder, kind, words or (), out)


@app.command()
def demo(
    run_dir: RunDirOption = Path("runs/demo"),
    workers: WorkersOption = None,
) -> None:
    """Run it all on a drawn catalogue. Needs no ABO, no key, no GPU, no download."""
    from jobs.verbs.demo import run_demo

    assert run_dir is not None
    raise typer.Exit(run_demo(run_dir, workers, out))


def main() -> int:
    """Run the command line; the exit code."""
    try:
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except typer.Exit as stop:
        code = int(stop.exit_code)
    except UsageError as error:
        err.print(f"error: {error.format_message()}", style="red", markup=False)  # type: ignore[attr-defined]
        return 2
    except UserError as error:
        err.print(f"error: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe (head, less) went away
        return 0
    if code == INTERRUPTED:  # which typer, too, makes of Ctrl-C
        err.print("Interrupted. What was finished is kept; the same command again resumes.", style="yellow")
    return code
