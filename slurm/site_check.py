"""Checks, before anything is queued, whether a run would work on this cluster. Every failed check says what to do.

::

    for check in site_checks(cluster, works) + node_checks(cluster, works, modules=["torch"]):
        print(check.ok, check.name, check.detail, check.advice)
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from slurm.probe import NodeFacts
from slurm.profile import Profile, Resources, SlurmError
from slurm.queue import run_command
from slurm.submit import Cluster, StepWork, python_path_line

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
NODE_WAIT_SECONDS = 60  # for a free node
PROBE_SECONDS = 300  # for setup lines and imports there; torch from a cold network file system takes minutes
SEE_PROFILE = "See setup and python in the cluster profile."


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    ok: bool | None  # None: unknown, or only a remark
    detail: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A folder that this machine and the compute nodes must share."""

    name: str
    path: Path
    advice: str  # what to do where they do not


def site_checks(cluster: Cluster, works: Sequence[StepWork]) -> list[Check]:
    """What the submitting machine can find out: commands, controller, each stage's resources, limits."""
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    if absent:
        detail = f"not installed here: {', '.join(absent)}"
        return [Check("SLURM commands", False, detail, "Log in to a machine of the SLURM cluster.")]
    checks = [Check("SLURM commands", True, run_command(["sbatch", "--version"]).strip())]
    try:
        run_command(["sinfo", "--noheader"])
    except SlurmError as error:
        advice = "Try again later, or ask the site's administrators."
        return [*checks, Check("SLURM controller", False, str(error), advice)]
    checks.append(Check("SLURM controller", True, "answers"))
    checks += [resources_check(cluster, work) for work in works]
    checks.append(array_check(cluster, works))
    checks.append(accounting_check())
    return checks


def resources_check(cluster: Cluster, work: StepWork) -> Check:
    """Whether sbatch would accept a stage's partition, account, QOS, GPUs, memory and time."""
    name = f"resources of {work.name}"
    resources = cluster.profile.resources(work.stage)
    asked = (
        f"{resources.partition or 'default partition'}, {resources.cpus} CPUs, {resources.memory}, {resources.time} min"
    )
    if resources.gpus:
        asked += f", {resources.gpus} GPUs per node"
    try:
        run_command(["sbatch", "--test-only"], stdin=cluster.script(work))
    except SlurmError as error:
        advice = f"Change stages.{work.stage} (or defaults) in the cluster profile; `sinfo` lists partitions and GPUs."
        return Check(name, False, f"{asked}: {error}", advice)
    return Check(name, True, f"{asked}: accepted")


def array_check(cluster: Cluster, works: Sequence[StepWork]) -> Check:
    """Whether arrays must be split. They are split automatically."""
    largest = max((len(work.shards or []) for work in works), default=0)
    limit = cluster.max_array_size
    split = ": it will be split" if largest > limit else ""
    return Check("array limit", True, f"{limit:,} elements per array; the largest stage has {largest:,}{split}")


def accounting_check() -> Check:
    """Whether sacct works; nothing depends on it."""
    try:
        run_command(["sacct", "--noheader", "--starttime=now"])
    except SlurmError:
        return Check("accounting", None, "sacct does not work here: only a task's log can say why it was killed")
    return Check("accounting", True, "sacct works")


def node_checks(
    cluster: Cluster, works: Sequence[StepWork], modules: Sequence[str], shared: Sequence[SharedFolder] = ()
) -> list[Check]:
    """What only a compute node can find out: one short job per partition, which waits for a free node.

    Args:
        cluster, works: what is to be run.
        modules: what should be importable there.
        shared: folders that should be shared, beside the run's.
    """
    share = "Choose a --run-dir on a file system that the compute nodes share with this machine."
    folders, word = [SharedFolder("run directory", cluster.folder, share), *shared], uuid.uuid4().hex
    try:
        return _node_checks(cluster, works, modules, folders, word)
    finally:
        for folder in folders:
            with suppress(OSError):
                (folder.path / f"probe.{word}").unlink(missing_ok=True)
                folder.path.rmdir()  # leave no trace of a run that has not started


def _node_checks(
    cluster: Cluster, works: Sequence[StepWork], modules: Sequence[str], folders: Sequence[SharedFolder], word: str
) -> list[Check]:
    for folder in folders:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            (folder.path / f"probe.{word}").write_text(word)
        except OSError as error:
            return [Check(folder.name, False, f"{folder.path}: {error.strerror}", folder.advice)]
    by_partition: dict[str | None, Resources] = {}
    for work in works:
        resources = cluster.profile.resources(work.stage)
        by_partition.setdefault(resources.partition, resources)
    checks = []
    question = {"word": word, "folders": [str(folder.path) for folder in folders], "modules": list(modules)}
    for resources in by_partition.values():
        found = _probe(cluster.profile, resources, json.dumps(question))
        checks += [found] if isinstance(found, Check) else _judge(found, folders, modules)
    return checks


def _probe(profile: Profile, resources: Resources, question: str) -> NodeFacts | Check:
    """What a node of a partition finds, or why none could be asked."""
    where = f"a node of {resources.partition or 'the default partition'}"
    python = profile.python or shlex.quote(sys.executable)
    probe = f"{python} -m slurm.probe {shlex.quote(question)}"
    script = "\n".join([*profile.setup, *resources.setup, python_path_line(), probe])
    options = {"partition": resources.partition, "account": resources.account, "qos": resources.qos}
    command = ["srun", "--ntasks=1", "--cpus-per-task=1", "--mem=1G", "--time=5", f"--immediate={NODE_WAIT_SECONDS}"]
    command += [f"--{name}={value}" for name, value in options.items() if value]
    try:
        output = run_command([*command, "bash", "-c", script], timeout=NODE_WAIT_SECONDS + PROBE_SECONDS)
    except SlurmError as error:
        message = " ".join(str(error).split())[-400:]
        if re.search("Unable to allocate resources|immediate|did not answer", message, re.IGNORECASE):
            advice = "Try again when the cluster is less busy, or launch without this check."
            return Check(where, None, f"could not be checked: {message}", advice)
        return Check(where, False, f"the check could not start: {message}", SEE_PROFILE)
    facts = [line.removeprefix("PROBE ") for line in output.splitlines() if line.startswith("PROBE ")]
    if not facts:
        return Check(where, False, "the check could not start: setup ended the shell", SEE_PROFILE)
    return NodeFacts(**json.loads(facts[0]))


def _judge(node: NodeFacts, folders: Sequence[SharedFolder], modules: Sequence[str]) -> list[Check]:
    where, checks = f"node {node.node}", []
    for folder, sees, error in zip(folders, node.sees, node.write_errors, strict=True):
        name, path = f"{where}: {folder.name}", str(folder.path)
        checks.append(Check(f"{name} visible", sees, path, folder.advice))
        checks.append(Check(f"{name} writable", not error, f"{path}: {error}" if error else path, folder.advice))
    for name in modules:
        error = node.import_errors.get(name, "")
        advice = "Use the same environment there: see setup and python in the cluster profile."
        checks.append(Check(f"{where}: import {name}", not error, error or "works", advice))
    if node.has_sbatch:
        checks.append(Check(f"{where}: sbatch", True, "killed tasks are resubmitted automatically"))
    else:
        detail = "not on compute nodes: to resubmit killed tasks, run the same command again"
        checks.append(Check(f"{where}: sbatch", None, detail))
    return checks
