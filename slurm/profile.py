"""A cluster profile: what a site's SLURM wants to hear, and what each stage needs there. One YAML file a site.

::

    defaults: {partition: cpu, account: vision, cpus: 2, memory: 8G, time: "4:00:00"}
    stages:
      generate: {partition: internet, parallel: 16}
      train: {partition: gpu, gpus: 4, nodes: 2, memory: 64G, time: 1-00:00:00}
    setup: ["module load cuda/12.4"]

A stage's values replace the defaults. `gate` is the small job that looks at a stage's results when it has ended.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

PROFILES = Path(__file__).resolve().parent / "profiles"
GATE = "gate"

# What this code sets itself: a profile that sets it too would break arrays, chains or requeueing.
RESERVED = {"array", "dependency", "kill-on-invalid-dep", "job-name", "output", "error", "open-mode", "signal", "requeue",
            "no-requeue", "wrap", "wait", "parsable", "chdir"}  # fmt: skip


class SlurmError(ValueError):
    """What the user or the site can mend; the message says what to do."""


def minutes(value: object) -> int:
    """SLURM's ways of writing a duration, as whole minutes.

    Raises:
        ValueError: it is none of them.
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
    """Refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Word = Annotated[str, Field(pattern=r"^[^\s'\"]+$")]


class Resources(Strict):
    """What one task asks SLURM for."""

    cpus: int = Field(default=2, ge=1)
    # CPUs a task
    memory: str = Field(default="8G", pattern=r"^\d+[MGT]$")
    # memory a node, such as 16G
    time: Annotated[int, BeforeValidator(minutes), Field(ge=1)] = 240
    # time limit; a task that reaches it writes what it has and is requeued
    gpus: int = Field(default=0, ge=0)
    # GPUs a node; training runs one task a GPU
    gpu_type: Word | None = None
    # as in --gpus-per-node=TYPE:N
    nodes: int = Field(default=1, ge=1)
    # more than one only for training
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: str | None = None
    nice: int | None = None
    parallel: int = Field(default=256, ge=1)
    # tasks of one array at once
    flags: dict[str, str | int | bool] = {}
    # further sbatch options, by their long names: {exclude: "n[7-9]", exclusive: true}
    setup: tuple[str, ...] = ()
    # shell lines before the task, after the profile's own


class Profile(Strict):
    """A site: resources by stage, and how often work is started again."""

    defaults: Resources = Resources()
    stages: dict[str, Resources] = {}
    setup: tuple[str, ...] = ()
    # shell lines before every task: modules, conda activate
    python: str | None = None
    # command that starts Python on the nodes, such as "apptainer exec --nv image.sif python"; without it this one
    grace_seconds: int = Field(default=90, ge=5)
    # how long before its time limit a task is asked to stop; it needs to finish and write the batch in hand
    requeues: int = Field(default=50, ge=0)
    # how often a task may reach its time limit before it counts as failed
    retries: int = Field(default=2, ge=0)
    # how often the tasks of a stage that were killed are submitted again

    def resources(self, stage: str) -> Resources:
        """What a stage's tasks get."""
        return self.stages.get(stage, self.defaults)


GATE_RESOURCES = {"cpus": 1, "memory": "2G", "time": 60, "gpus": 0, "gpu_type": None, "nodes": 1}


class _Loader(yaml.SafeLoader):
    """Leaves 4:00:00 as it is written: YAML 1.1 would make the number 14400 of it, base 60."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))


def load_profile(name: str | Path, stages: Collection[str]) -> Profile:
    """Read a profile by its name under slurm/profiles/ or by its path.

    Args:
        name: ``generic``, or the path of a YAML file.
        stages: the stages that a profile may speak of.

    Raises:
        SlurmError: one line a mistake, each naming the key, the value and what would be right.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise SlurmError(f"No cluster profile {path}. {nearest(str(name), shipped())} Or give a YAML file's path.")
    try:
        tree = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SlurmError(f"Cannot read the cluster profile {path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise SlurmError(f"{path} must hold sections (defaults:, stages:), not {type(tree).__name__}.")
    return build_profile(tree, stages, source=str(path))


def build_profile(tree: Mapping[str, Any], stages: Collection[str], source: str) -> Profile:
    """Validate a parsed profile; each stage gets the defaults for what it does not say.

    Raises:
        SlurmError: as `load_profile`.
    """
    tree = dict(tree)
    sections, defaults = tree.get("stages") or {}, tree.get("defaults") or {}
    known = [*stages, GATE]
    tree |= {"stages": sections, "defaults": defaults}  # a section with nothing in it is None in YAML
    problems = []
    if isinstance(sections, dict) and isinstance(defaults, dict):
        problems += [f"stages.{name} is no stage. {nearest(name, known)}" for name in sections if name not in known]
        merged = {name: {**defaults, **section} for name, section in sections.items() if isinstance(section, dict)}
        # The gate needs little whatever the stages need, and runs where the tasks do.
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


def shipped() -> list[str]:
    """The names of the profiles that come with the project."""
    return sorted(file.stem for file in PROFILES.glob("*.yaml"))


def nearest(name: str, known: Collection[str]) -> str:
    """What is known, and what was probably meant."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(known)}."


def _reserved(name: str, section: object) -> list[str]:
    flags = section.get("flags") if isinstance(section, dict) else None
    if not isinstance(flags, dict):
        return []
    where = name if name == "defaults" else f"stages.{name}"
    lines = []
    for flag in flags:
        long = str(flag).replace("_", "-").lstrip("-")
        if long in RESERVED:
            lines.append(f"{where}.flags.{flag}: --{long} is set by this program; leave it out")
        elif not re.fullmatch(r"[a-z][a-z0-9-]+", long) or long != flag:
            lines.append(f"{where}.flags.{flag}: write the long option without its dashes, such as exclude")
    return lines


def _inherited(location: tuple[int | str, ...], sections: object) -> bool:
    """Whether a mistake in a stage is the defaults' mistake, which is told once."""
    if len(location) < 3 or location[0] != "stages" or not isinstance(sections, dict):
        return False
    return location[2] not in (sections.get(location[1]) or {})


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        model = Resources if location[0] in ("defaults", "stages") else Profile
        return f"unknown key {key}. {nearest(location[-1], list(model.model_fields))}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if location[-1] == "memory":
        message = "write memory as a whole number with M, G or T, such as 16G"
    if location[-1] == "setup":
        message = 'write a list of shell lines, such as ["module load cuda"]'
    return f"{key} = {problem['input']!r}: {message[0].lower()}{message[1:]}"
