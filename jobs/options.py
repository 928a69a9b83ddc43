"""The options of the command line, each documented once. A verb with many takes them as one object."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, TypeVar, get_type_hints

import typer

T = TypeVar("T")


class Cluster(StrEnum):
    """Where tasks run."""

    local = "local"
    slurm = "slurm"


RunDirArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's folder, as given to --run-dir.")]
RunDirOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The run's folder (default: runs/<name of the configuration>).")
]
ClusterOption = Annotated[
    Cluster | None,
    typer.Option(
        metavar="PLACE", help="Where the tasks run: local or slurm (doctor: local by default; resume: as before)."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(metavar="NAME_OR_FILE", help="A name from jobs/configs, or a YAML file (default: abo)."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the configuration; may be repeated."),
]
StagesOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="Only these stages, such as prepare,validate (default: all; resume: as before)."
    ),
]
ShardsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Number of tasks of validate, generate and evaluate.")
]
RedoOption = Annotated[
    bool,
    typer.Option(
        "--redo", help="Agree to pay again for what changed (images, listings, settings), and to train again."
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME_OR_FILE",
        help="The SLURM site: a name from slurm/profiles, or a YAML file (default: generic; resume: as before).",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Tasks at a time on this machine (default: CPU count).")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="blip or vilt (default: what the adapter says); in a run with several: which one."
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME_OR_FOLDER", help="The base: hub name or folder (default: the adapter's, or the published one)."
    ),
]
TruthOption = Annotated[str, typer.Option(metavar="COLUMN", help="A table's column with the true answers.")]
PredictionOption = Annotated[str, typer.Option(metavar="COLUMN", help="A table's column with the answers to score.")]
GroupByOption = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="A table's column that names product or image; intervals resample these."),
]
ToOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Write here (export: a new folder), and nothing into the run's folder, which may be read-only.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


def show_version(asked: bool) -> None:
    """Print the version and end."""
    if asked:
        try:
            print(f"product-vqa {version('product-vqa')}")
        except PackageNotFoundError:
            print("product-vqa, not installed")
        raise typer.Exit


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """``launch.py --cluster ...``"""

    cluster: ClusterOption = None
    config: ConfigOption = None
    run_dir: RunDirOption = None
    stages: StagesOption = None
    profile: ProfileOption = None
    shards: ShardsOption = None
    workers: WorkersOption = None
    overrides: SetOption = None
    redo: RedoOption = False
    dry_run: DryRunOption = False
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and end.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequest:
    """``launch.py resume``"""

    run_dir: RunDirArgument
    cluster: ClusterOption = None
    stages: StagesOption = None
    profile: ProfileOption = None
    shards: ShardsOption = None
    workers: WorkersOption = None
    overrides: SetOption = None
    redo: RedoOption = False
    dry_run: DryRunOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """``launch.py audit``"""

    run_dir: RunDirArgument
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further files of verdicts, after --verdicts.")
    ] = None
    questions: Annotated[int, typer.Option(min=10, help="How many to draw.")] = 200
    seed: Annotated[int, typer.Option(help="Another seed, another sample.")] = 0
    verdicts: Annotated[Path | None, typer.Option(metavar="FILE...", help="Read what one or several people said.")] = (
        None
    )
    json: JsonOption = False


@dataclass(frozen=True, slots=True)
class DoctorRequest:
    """``launch.py doctor``"""

    cluster: ClusterOption = None
    config: ConfigOption = None
    run_dir: RunDirOption = None
    profile: ProfileOption = None
    overrides: SetOption = None


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """``launch.py plan``"""

    config: ConfigOption = None
    run_dir: RunDirOption = None
    overrides: SetOption = None
    probe: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Ask about N products (paid) and plan from what they take.")
    ] = None
    yes: Annotated[bool, typer.Option("--yes", help="Send the probe's requests without asking.")] = False


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """``launch.py predict``"""

    csv_path: Annotated[
        Path | None,
        typer.Option("--csv_path", "--csv-path", metavar="FILE", help="Table with image_name,question[,answer]."),
    ] = None
    image_dir: Annotated[
        Path | None, typer.Option("--image_dir", "--image-dir", metavar="FOLDER", help="Folder of the table's images.")
    ] = None
    output: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Where the answers go: the table, with generated_answer and confidence."),
    ] = Path("results.csv")
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there already.")] = False
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="An image, instead of a table; may be repeated.")
    ] = None
    question: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A question about each image; may be repeated.")
    ] = None
    model: ModelOption = None
    weights: WeightsOption = None
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A run's folder, or that of a LoRA adapter (default: the base alone)."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """``launch.py score``"""

    table: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or JSONL.")]
    truth: TruthOption = "answer"
    prediction: PredictionOption = "generated_answer"
    group_by: GroupByOption = None
    bertscore: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Hub name or folder of the BERT for BERTScore (default: none).")
    ] = None
    json: JsonOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRequest:
    """``launch.py compare``"""

    sources: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_TABLE...", help="Folders of runs, and CSV or JSONL tables.")
    ]
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Of the runs: only this model (default: all).")] = (
        None
    )
    variant: Annotated[
        str | None,
        typer.Option(metavar="base|lora", help="Of the runs: only the base or the fine-tuned answers (default: both)."),
    ] = None
    truth: TruthOption = "answer"
    prediction: PredictionOption = "generated_answer"
    group_by: GroupByOption = None
    against: Annotated[
        str | None, typer.Option(metavar="ENTRY", help="What to compare with: an entry, or best (default: the first).")
    ] = None
    output: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also write a page.")] = None
    json: JsonOption = False


def takes(kind: type[T]) -> Callable[[Callable[[typer.Context, T], None]], Callable[..., None]]:
    """Give a command one option for each field of a dataclass; the command is called with the dataclass."""
    hints = get_type_hints(kind, include_extras=True)

    def decorate(command: Callable[[typer.Context, T], None]) -> Callable[..., None]:
        def run(context: typer.Context, **values: object) -> None:
            command(context, kind(**values))

        parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
                )
            )
        # typer reads a command's options from its signature and annotations.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {"context": typer.Context, **hints}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate
