"""The options of the command line, each documented once. A verb with many takes them as one object."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar, get_type_hints

import typer

T = TypeVar("T")


class Cluster(StrEnum):
    """Where tasks run."""

    local = "local"
    slurm = "slurm"


RunDirArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's folder, as given to --run-dir.")]
RunDirOption = Annotated[Path | None, typer.Option(help="The run's folder (default: runs/<name of the config>).")]
ConfigOption = Annotated[
    Path | None, typer.Option(help="YAML file, or a name from jobs/configs, such as abo_sample (default: abo).")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override the configuration.")
]
ProfileOption = Annotated[
    str | None, typer.Option(help="slurm: the site, a name from slurm/profiles or a file (default: generic).")
]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Maximum local tasks (default: CPU count).")]
ModelOption = Annotated[str, typer.Option(help="blip, vilt.")]
WeightsOption = Annotated[
    str | None, typer.Option(help="Hub name or folder (default: the adapter's base, or the published weights).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


StagesOption = Annotated[str | None, typer.Option(help="Only these, such as prepare,validate.")]
ShardsOption = Annotated[int | None, typer.Option(min=1, help="Tasks of every sharded stage.")]
RedoOption = Annotated[
    bool,
    typer.Option("--redo", help="Pay again for products whose image, listing or settings changed, and train again."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """``launch.py --cluster ...``"""

    cluster: Annotated[Cluster | None, typer.Option(help="Where the tasks run.")] = None
    config: ConfigOption = None
    run_dir: RunDirOption = None
    stages: StagesOption = None
    profile: ProfileOption = None
    shards: ShardsOption = None
    workers: WorkersOption = None
    overrides: SetOption = None
    redo: RedoOption = False
    dry_run: DryRunOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequest:
    """``launch.py resume``"""

    run_dir: RunDirArgument
    cluster: Annotated[Cluster | None, typer.Option(help="Where the tasks run (default: as it was launched last).")] = (
        None
    )
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

    cluster: Annotated[Cluster, typer.Option(help="Where the tasks would run.")] = Cluster.local
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
        Path | None, typer.Option("--csv_path", "--csv-path", help="Table with image_name,question[,answer].")
    ] = None
    image_dir: Annotated[
        Path | None, typer.Option("--image_dir", "--image-dir", help="Folder of the table's images.")
    ] = None
    output: Annotated[Path, typer.Option(help="Where the answers go: image_name,question,answer,generated_answer.")] = (
        Path("results.csv")
    )
    image: Annotated[Path | None, typer.Option(help="One image, instead of a table.")] = None
    question: Annotated[str | None, typer.Option(help="One question about it.")] = None
    model: ModelOption = "blip"
    weights: WeightsOption = None
    adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """``launch.py score``"""

    table: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or JSONL.")]
    truth: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the true answers.")] = "answer"
    prediction: Annotated[str, typer.Option(metavar="COLUMN", help="Column to score.")] = "generated_answer"
    group_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that names the product or image, for the intervals.")
    ] = None
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
    model: Annotated[str | None, typer.Option(help="Of the runs: only this model (default: all).")] = None
    variant: Annotated[str | None, typer.Option(help="Of the runs: only base or lora (default: both).")] = None
    truth: Annotated[str, typer.Option(metavar="COLUMN", help="Tables: column with the true answers.")] = "answer"
    prediction: Annotated[str, typer.Option(metavar="COLUMN", help="Tables: column to score.")] = "generated_answer"
    group_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Tables: names the product or image, for the intervals.")
    ] = None
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
