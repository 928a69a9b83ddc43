"""Will a run work on this cluster? Asked before anything is queued; every answer says what to do.

::

    for check in site_checks(cluster, works) + node_checks(cluster, works, modules=["torch"]):
        print(check.ok, check.name, check.detail, check.what_to_do)
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from slurm.profile import Profile, Resources, SlurmError
from slurm.queue import outside_of_jobs, run_command
from slurm.submit import PROJECT, Cluster, StepWork

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
NODE_WAIT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool | None  # None: could not be found out, or is only good to know
    detail: str
    what_to_do: str = ""


def site_checks(cluster: Cluster, works: Sequence[StepWork]) -> list[Check]:
    """What can be asked from the machine that submits: commands, controller, every stage's script, limits."""
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    if absent:
        return [Check("SLURM commands", False, f"not here: {', '.join(absent)}", "Log in to a machine of the cluster.")]
    checks = [Check("SLURM commands", True, run_command(["sbatch", "--version"]).strip())]
    try:
        run_command(["sinfo", "--noheader"])
    except SlurmError as error:
        return [*checks, Check("SLURM controller", False, str(error), "Ask the site, or try again later.")]
    checks.append(Check("SLURM controller", True, "answers"))
    checks += [script_check(cluster, work) for work in works]
    checks.append(array_check(cluster, works))
    checks.append(accounting_check())
    return checks


def script_check(cluster: Cluster, work: StepWork) -> Check:
    """Whether the site would take a stage's job: partition, account, QOS, GPUs, memory, time, as sbatch itself sees them."""
    name = f"resources of {work.name}"
    resources = cluster.profile.resources(work.stage)
    asked = (
        f"{resources.partition or 'default partition'}, {resources.cpus} CPUs, {resources.memory}, {resources.time} min"
    )
    if resources.gpus:
        asked += f", {resources.gpus} GPUs a node"
    done = subprocess.run(
        ["sbatch", "--test-only"],
        input=cluster.script(work),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=outside_of_jobs(),
    )
    if done.returncode == 0:
        return Check(name, True, f"{asked}: accepted")
    words = done.stderr.strip().removeprefix("allocation failure: ").removeprefix("sbatch: error: ")
    advice = f"Change stages.{work.stage} (or defaults) in the cluster profile; `sinfo` lists partitions and GPUs."
    return Check(name, False, f"{asked}: {words}", advice)


def array_check(cluster: Cluster, works: Sequence[StepWork]) -> Check:
    """Whether arrays must be split."""
    largest = max((len(work.shards or []) for work in works), default=0)
    limit = cluster.max_array_size
    detail = f"the site takes {limit:,} elements an array; the largest stage has {largest:,}"
    return Check("array limit", True, detail + (": it is split" if largest > limit else ""))


def accounting_check() -> Check:
    """Whether sacct works; nothing depends on it."""
    try:
        run_command(["sacct", "--noheader", "--starttime=now"])
    except SlurmError:
        return Check("accounting", None, "no sacct here: why a task was killed is then told from its log alone")
    return Check("accounting", True, "sacct works")


def node_checks(cluster: Cluster, works: Sequence[StepWork], modules: Sequence[str]) -> list[Check]:
    """What only a compute node can tell; one short job a partition, which may have to wait."""
    folder, word = cluster.folder, uuid.uuid4().hex
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "probe").write_text(word)
    except OSError as error:
        return [Check("run directory", False, f"{folder}: {error.strerror}", "Choose another --run-dir.")]
    seen: dict[str | None, Resources] = {}
    for work in works:
        resources = cluster.profile.resources(work.stage)
        seen.setdefault(resources.partition, resources)
    try:
        checks = []
        for resources in seen.values():
            checks += _probe(cluster.profile, resources, folder, word, modules)
        return checks
    finally:
        (folder / "probe").unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # a run that was not begun yet has no files


def _probe(profile: Profile, resources: Resources, folder: Path, word: str, modules: Sequence[str]) -> list[Check]:
    where = f"a node of {resources.partition or 'the default partition'}"
    python = profile.python or shlex.quote(sys.executable)
    probe = f"{python} -m slurm.probe {shlex.join([str(folder), word, *modules])}"
    path = f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    script = "\n".join([*profile.setup, *resources.setup, path, probe])
    options = {"partition": resources.partition, "account": resources.account, "qos": resources.qos}
    command = ["srun", "--ntasks=1", "--cpus-per-task=1", "--mem=1G", "--time=5", f"--immediate={NODE_WAIT_SECONDS}"]
    command += [f"--{name}={value}" for name, value in options.items() if value]
    try:
        done = subprocess.run(
            [*command, "bash", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=NODE_WAIT_SECONDS + 300,
            env=outside_of_jobs(),
        )
    except subprocess.TimeoutExpired:
        return [Check(where, None, "did not answer in time", "Try again when the cluster is less busy.")]
    line = next((line for line in done.stdout.splitlines() if line.startswith("PROBE ")), None)
    if line is None:
        words = " ".join((done.stderr or done.stdout).split())[-400:]
        if "Unable to allocate resources" in words or "immediate" in words.lower():
            return [Check(where, None, f"no room for a look: {words}", "Try again, or submit all the same.")]
        return [
            Check(where, False, f"the task could not start: {words}", "See setup and python in the cluster profile.")
        ]
    found = json.loads(line.removeprefix("PROBE "))
    where = f"node {found['node']}"
    shared = "Choose a --run-dir on a file system that the compute nodes share with this machine."
    checks = [
        Check(f"{where}: run directory visible", found["sees"], str(folder.parent), "" if found["sees"] else shared),
        Check(f"{where}: run directory writable", not found["writes"], found["writes"] or str(folder.parent), shared if found["writes"] else ""),
    ]  # fmt: skip
    for name in modules:
        problem = found["imports"].get(name, "")
        advice = "Use the same environment there: see setup and python in the cluster profile." if problem else ""
        checks.append(Check(f"{where}: import {name}", not problem, problem or "works", advice))
    if found["sbatch"]:
        checks.append(Check(f"{where}: sbatch", True, "killed tasks are submitted again by themselves"))
    else:
        detail = "not on compute nodes: killed tasks are submitted again by running the same command"
        checks.append(Check(f"{where}: sbatch", None, detail))
    return checks
