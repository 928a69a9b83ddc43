"""A cluster profile: what a site's SLURM requires, and the resources of each stage there. One YAML file per site.

::

    defaults: {partition: cpu, account: vision, cpus: 2, memory: 8G, time: "4:00:00"}
    stages:
      generate: {partition: internet, parallel: 16}
      train: {partition: gpu, gpus: 4, nodes: 2, memory: 64G, time: 1-00:00:00}
    setup: ["module load cuda/12.4"]

A stage's values override the defaults. `gate` is the small job that checks a stage's results once its tasks have ended.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from data_prep.files import yaml_file
from data_prep.outcomes import UserError, unknown_name

PROFILES = Path(__file__).resolve().parent / "profiles"
GATE = "gate"

# Options that this package sets: a profile that set them too would break arrays, chains or requeueing.
RESERVED = {"array", "dependency", "kill-on-invalid-dep", "job-name", "output", "error", "open-mode", "signal", "requeue",
            "no-requeue", "wrap", "wait", "parsable", "chdir"}  # fmt: skip


class SlurmError(UserError):
    """SLURM, or a cluster profile, does not do what was asked; the message says what to do."""


def minutes(value: object) -> int:
    """Parse a duration as SLURM writes it; whole minutes, rounded up, since that is how SLURM keeps time limits.

    Raises:
        ValueError: it is not one.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(value).strip())
    if not match:
        raise ValueError("write a time as minutes (90), hours (4:00:00) or days (1-12:00:00)")
    days, *rest = match.groups()
    first, second, third = (int(part or 0) for part in rest)
    if days is not None:  # D-H[:M[:S]]
        return (int(days) * 24 + first) * 60 + second + (third > 0)
    if rest[1] is None:  # M
        return first
    if rest[2] is None:  # M:S
        return first + (second > 0)
    return first * 60 + second + (third > 0)


class Strict(BaseModel):
    """Rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Word = Annotated[str, Field(pattern=r"^[^\s'\"]+$")]


class Resources(Strict):
    """The resources of one task."""

    cpus: int = Field(default=2, ge=1)
    # CPUs per task
    memory: str = Field(default="8G", pattern=r"^\d+[MGT]$")
    # memory per node, such as 16G
    time: Annotated[int, BeforeValidator(minutes), Field(ge=1)] = 240
    # time limit; a task that reaches it saves its work and is requeued
    gpus: int = Field(default=0, ge=0)
    # GPUs per node; training runs one task per GPU
    gpu_type: Word | None = None
    # as in --gpus-per-node=TYPE:N
    nodes: int = Field(default=1, ge=1)
    # more than one for training only
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: str | None = None
    nice: int | None = None
    parallel: int = Field(default=256, ge=1)
    # maximum running tasks of one array
    flags: dict[str, str | int | bool] = {}
    # other sbatch options, by their long names: {exclude: "n[7-9]", exclusive: true}
    setup: tuple[str, ...] = ()
    # shell lines that run before the task, after the profile's own


class Profile(Strict):
    """A site: the resources of each stage, and how often work is restarted."""

    defaults: Resources = Resources()
    stages: dict[str, Resources] = {}
    setup: tuple[str, ...] = ()
    # shell lines that run before every task: module load, conda activate
    python: str | None = None
    # command that starts Python on the nodes, such as "apptainer exec --nv image.sif python" (default: this interpreter)
    grace_seconds: int = Field(default=90, ge=5)
    # seconds before the time limit at which a task is asked to stop: long enough to finish and save the current batch
    requeues: int = Field(default=50, ge=0)
    # how often a task may reach its time limit before it counts as failed
    retries: int = Field(default=2, ge=0)
    # how often killed tasks of a stage are submitted again

    def resources(self, stage: str) -> Resources:
        """The resources of a stage's tasks."""
        return self.stages.get(stage, self.defaults)


GATE_RESOURCES = {"cpus": 1, "memory": "2G", "time": 60, "gpus": 0, "gpu_type": None, "nodes": 1}


class _Loader(yaml.SafeLoader):
    """Keeps 4:00:00 a string: YAML 1.1 reads it as the base-60 number 14400."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))


def load_profile(name: str | Path, stages: Collection[str]) -> Profile:
    """Read a profile by its name under slurm/profiles/ or by its path.

    Args:
        name: ``generic``, or the path of a YAML file.
        stages: the stages that a profile may name.

    Raises:
        SlurmError: one line per mistake, with the key, the value and what is allowed.
    """
    try:
        path = yaml_file(name, PROFILES, "cluster profile")
    except UserError as error:
        raise SlurmError(f"--profile: {error}") from None
    try:
        tree = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SlurmError(f"Cannot read the cluster profile {path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise SlurmError(f"{path} must have sections (defaults:, stages:), not {type(tree).__name__}.")
    return build_profile(tree, stages, source=str(path))


def build_profile(tree: Mapping[str, Any], stages: Collection[str], source: str) -> Profile:
    """Validate a parsed profile; each stage inherits the defaults that it does not override.

    Raises:
        SlurmError: see `load_profile`.
    """
    tree = dict(tree)
    sections, defaults = tree.get("stages") or {}, tree.get("defaults") or {}
    known = [*stages, GATE]
    tree |= {"stages": sections, "defaults": defaults}  # YAML reads an empty section as None
    problems = []
    if isinstance(sections, dict) and isinstance(defaults, dict):
        problems += [f"stages.{n}: {unknown_name(n, known, 'stage')}" for n in sections if n not in known]
        merged = {name: {**defaults, **section} for name, section in sections.items() if isinstance(section, dict)}
        # The gate runs where the tasks run, but needs little, whatever the defaults are.
        merged[GATE] = {**defaults, **GATE_RESOURCES, **(sections.get(GATE) or {})}
        tree["stages"] = {**sections, **merged}
        for name, section in {"defaults": defaults, **sections}.items():
            problems += _reserved(name, section)
    try:
        profile = Profile.model_validate(tree)
    except ValidationError as error:
        own = [problem for problem in error.errors() if not _inherited(problem["loc"], sections)]
        problems += [_explain(problem) for problem in own]
    if problems:
        raise SlurmError(f"Cluster profile {source}: " + "\n  ".join(problems))
    return profile


def _reserved(name: str, section: object) -> list[str]:
    flags = section.get("flags") if isinstance(section, dict) else None
    if not isinstance(flags, dict):
        return []
    where = name if name == "defaults" else f"stages.{name}"
    lines = []
    for flag in flags:
        long = str(flag).replace("_", "-").lstrip("-")
        if long in RESERVED:
            lines.append(f"{where}.flags.{flag}: --{long} is set by this program; remove it")
        elif not re.fullmatch(r"[a-z][a-z0-9-]+", long) or long != flag:
            lines.append(f"{where}.flags.{flag}: write the long option without dashes, such as exclude")
    return lines


def _inherited(location: tuple[int | str, ...], sections: object) -> bool:
    """Whether a stage's mistake was inherited from the defaults, where it is reported once."""
    if len(location) < 3 or location[0] != "stages" or not isinstance(sections, dict):
        return False
    return location[2] not in (sections.get(location[1]) or {})


def _explain(problem: ErrorDetails) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        model = Resources if location[0] in ("defaults", "stages") else Profile
        return f"{key}: {unknown_name(location[-1], list(model.model_fields), 'key')}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if location[-1] == "memory":
        message = "write memory as a whole number with M, G or T, such as 16G"
    if location[-1] == "setup":
        message = 'write a list of shell lines, such as ["module load cuda"]'
    return f"{key} = {problem['input']!r}: {message[0].lower()}{message[1:]}"
