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
from typing import Annotated, Any, Literal

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


def _none(value: object) -> object:
    """The word none means what YAML's null does."""
    return None if str(value).lower() == "none" else value


def _job_ids(value: object) -> object:
    """One id or several, as numbers or words."""
    return tuple(str(one) for one in value) if isinstance(value, list | tuple) else (str(value),)


JobId = Annotated[str, Field(pattern=r"^\d+(_\d+)?$")]
Memory = Annotated[str, Field(pattern=r"^\d+[MGT]$")]
Word = Annotated[str, Field(pattern=r"^[^\s'\"]+$")]


class Resources(Strict):
    """The resources of one task."""

    cpus: int = Field(default=2, ge=1)
    # CPUs per task
    memory: Annotated[Memory | None, BeforeValidator(_none)] = "8G"
    # memory per node, such as 16G; none where the site does not let jobs ask for it
    memory_per_cpu: Memory | None = None
    # instead of memory
    time: Annotated[int, BeforeValidator(minutes), Field(ge=1)] = 240
    # time limit; a task that reaches it saves its work and is requeued
    gpus: int = Field(default=0, ge=0)
    # GPUs per node; training runs one task per GPU
    gpu_type: Word | None = None
    # as in --gpus-per-node=TYPE:N
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    # how the site wants GPUs to be asked for: gres is --gres=gpu:N
    tasks_per_node: int | None = Field(default=None, ge=1)
    # processes of a training on each node (default: one per GPU)
    nodes: int = Field(default=1, ge=1)
    # more than one for training only
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    wckey: Word | None = None
    constraint: str | None = None
    nice: int | None = None
    parallel: int = Field(default=256, ge=1)
    # maximum running tasks of one array
    flags: dict[str, str | int | bool] = {}
    # other sbatch options, by their long names: {exclude: "n[7-9]", exclusive: true}
    setup: tuple[str, ...] = ()
    # shell lines that run before the task, after the profile's own

    @property
    def processes(self) -> int:
        """How many processes a training has on each node."""
        return self.tasks_per_node or max(1, self.gpus)


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
    max_queued: int | None = Field(default=None, ge=3)
    # the most jobs of a run in the queue at one time, array elements and gates included, where the site has such a limit:
    # tasks then do several shards each, and gates queue the next stages
    after: Annotated[tuple[JobId, ...], BeforeValidator(_job_ids)] = ()
    # jobs of any kind that must succeed before a run begins
    mail: Word | None = None
    # address that gets one mail when a run ends or stops

    def resources(self, stage: str) -> Resources:
        """The resources of a step's tasks: its own (train:blip), or those of its stage."""
        return self.stages.get(stage) or self.stages.get(stage.partition(":")[0], self.defaults)


GATE_RESOURCES = {"cpus": 1, "time": 60, "gpus": 0, "gpu_type": None, "nodes": 1, "tasks_per_node": None}


def _inherit(defaults: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """A section with the values that it does not override; one way to ask for memory takes the place of the other."""
    merged = {**defaults, **section}
    if "memory_per_cpu" in section and "memory" not in section:
        merged["memory"] = None
    if "memory" in section and "memory_per_cpu" not in section:
        merged.pop("memory_per_cpu", None)
    return merged


def _gate(defaults: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """The gate runs where the tasks run, but needs little, whatever the defaults are."""
    memory = {"memory": "2G"} if defaults.get("memory", "8G") not in (None, "none") else {}
    return _inherit({**defaults, **GATE_RESOURCES, **memory}, section)


def _is_step(name: str, stages: Collection[str]) -> bool:
    """Whether resources can be given for it: a stage, a stage of one model (train:blip), or the gate."""
    stage, colon, target = name.partition(":")
    return name == GATE or (stage in stages and bool(target) == bool(colon))


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
        problems += [f"stages.{n}: {unknown_name(n, known, 'stage')}" for n in sections if not _is_step(n, stages)]
        defaults = tree["defaults"] = _inherit({}, defaults)
        merged = {
            name: _inherit(_inherit(defaults, sections.get(name.partition(":")[0]) or {}), section)
            for name, section in sections.items()
            if isinstance(section, dict)
        }
        merged[GATE] = _gate(defaults, sections.get(GATE) or {})
        tree["stages"] = {**sections, **merged}
        for name, section in {"defaults": defaults, **sections}.items():
            problems += _mistakes(name, section)
    try:
        profile = Profile.model_validate(tree)
    except ValidationError as error:
        own = [problem for problem in error.errors() if not _inherited(problem["loc"], sections)]
        problems += [_explain(problem) for problem in own]
    if problems:
        raise SlurmError(f"Cluster profile {source}: " + "\n  ".join(problems))
    return profile


def _mistakes(name: str, section: object) -> list[str]:
    """What a section's own values say of each other and of this program's."""
    if not isinstance(section, dict):
        return []
    where = name if name == "defaults" else f"stages.{name}"
    both = all(_none(section.get(key)) is not None for key in ("memory", "memory_per_cpu"))
    lines = [f"{where}: give memory or memory_per_cpu, not both"] if both else []
    flags = section.get("flags")
    if not isinstance(flags, dict):
        return lines
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
    if location[-1] in ("memory", "memory_per_cpu"):
        message = "write memory as a whole number with M, G or T, such as 16G"
    if location[-1] == "setup":
        message = 'write a list of shell lines, such as ["module load cuda"]'
    return f"{key} = {problem['input']!r}: {message[0].lower()}{message[1:]}"
