"""Will this configuration work here? Looked at before anything is started or queued; every answer says what to do.

::

    ✓ resources of train: gpu, 8 CPUs, 120G, 1440 min, 4 GPUs a node: accepted
    ✗ API key GEMINI_API_KEY: not set. → export GEMINI_API_KEY=... before launching; it is never written to the run's files
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from data_prep.abo import listings
from data_prep.generate import cost, models
from data_prep.generate.account import check_key
from data_prep.generate.settings import QuotaSettings, RequestSettings
from data_prep.outcomes import UserError
from jobs.backends import slurm
from jobs.config import Config
from jobs.options import Cluster, DoctorRequest
from jobs.pipeline import make_stage, steps_of
from jobs.preflight import LOW_DISK_BYTES, free_bytes
from jobs.run.contents import hub_commit
from jobs.run.layout import RunDir, Step
from jobs.run.run import load_run
from jobs.verbs.launch import resolve
from slurm.profile import Profile, SlurmError
from slurm.site_check import Check, SharedFolder, node_checks, site_checks
from slurm.submit import Cluster as SlurmCluster
from vqa.settings import is_hub_name

MODULES = ("orjson", "PIL", "torch", "transformers", "peft", "submitit", "jobs.backends.task")


def doctor(request: DoctorRequest, console: Console) -> int:
    """Check whether a launch would work; the exit code, 1 where something is wrong.

    Raises:
        UserError: the configuration or the profile is wrong.
    """
    config, folder = resolve(request.config, request.run_dir, request.overrides or ())
    on_slurm = request.cluster is Cluster.slurm
    site = slurm.read_profile(request.profile or slurm.DEFAULT_PROFILE) if on_slurm else None
    return show(diagnose(RunDir(folder.resolve()), config, steps_of(config), site), console)


def diagnose(run: RunDir, config: Config, steps: Sequence[Step], profile: Profile | None) -> list[Check]:
    """Look at everything that the steps need.

    Args:
        run: where the run is to be; need not exist.
        config: what is to be run.
        steps: the steps to be run.
        profile: the SLURM site; None for a run on this machine.
    """
    existed = run.path.exists()
    try:
        return _diagnose(run, config, steps, profile)
    finally:
        if not existed:
            with suppress(OSError):
                run.path.rmdir()  # a folder that is not a run is left as it was found


def _diagnose(run: RunDir, config: Config, steps: Sequence[Step], profile: Profile | None) -> list[Check]:
    stages = {step.stage for step in steps}
    checks = [folder_check("run directory", run.path, "Choose another --run-dir."), disk_check(run.path)]
    shared = quota_folders(config.generate) if "generate" in stages else []
    checks += [folder_check(folder.name, folder.path, folder.advice) for folder in shared]
    checks += lost_checks(run)
    if "prepare" in stages:
        checks.append(data_check(config))
    if "generate" in stages and config.generate.stand_in is None:
        checks += model_checks(config.generate) + key_checks(config.generate)
    if "verify" in stages and config.verify.stand_in is None:
        checks += model_checks(config.verify) + key_checks(config.verify)
    if stages & {"train", "evaluate"}:
        checks += [weights_check(name, str(model.weights)) for name, model in config.models.items()]
    if profile is not None:
        try:
            cluster = SlurmCluster(profile, run.slurm, "doctor")
            works = slurm.pending_work(run, config, steps, profile)
            site = site_checks(cluster, works)
            checks += site
            if all(check.ok is not False for check in site):
                checks += node_checks(cluster, works, MODULES, shared)
        except (SlurmError, UserError) as error:
            checks.append(Check("cluster", False, str(error)))
    return checks


def show(checks: Sequence[Check], console: Console) -> int:
    """Print the answers; the exit code is 1 where something would not work."""
    for check in checks:
        sign = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]?[/]"}[check.ok]
        advice = f"\n    → {escape(check.advice)}" if check.advice and check.ok is not True else ""
        console.print(f"{sign} {escape(check.name)}: {escape(check.detail)}{advice}")
    bad = sum(check.ok is False for check in checks)
    console.print(f"{bad} of {len(checks)} checks say that it would not work." if bad else "All checks passed.")
    return 1 if bad else 0


def quota_folders(settings: RequestSettings) -> list[SharedFolder]:
    """The folder in which runs share the quota of their projects, where they have one."""
    if settings.stand_in is not None or settings.quota == QuotaSettings():
        return []
    advice = "Set generate.quota_folder to a folder on a file system that the compute nodes share with this machine."
    return [SharedFolder("quota folder", settings.quota_folder, advice)]


def folder_check(name: str, path: Path, advice: str) -> Check:
    """Whether a folder can be written."""
    probe = path / f".probe.{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        return Check(name, False, f"{path}: {error.strerror}", advice)
    return Check(name, True, f"{path} can be written")


def disk_check(path: Path) -> Check:
    """Whether there is room for checkpoints and records."""
    free = free_bytes(path)
    detail = f"{free / 2**30:.0f} GiB free"
    if free < LOW_DISK_BYTES:
        return Check(
            "disk space", False, detail, f"Free at least {LOW_DISK_BYTES // 2**30} GiB, or choose another --run-dir."
        )
    return Check("disk space", True, detail)


def lost_checks(run: RunDir) -> list[Check]:
    """Whether what a run has finished is still there."""
    if not run.run_file.is_file():
        return []
    _, config = load_run(run.path)
    stages = [make_stage(step, run, config) for step in steps_of(config)]
    found = [Check(f"files of {stage.step}", None, lost) for stage in stages if (lost := str(stage.lost()))]
    return found or [Check("finished files", True, "all there")]


def data_check(config: Config) -> Check:
    """Whether the collection is where the configuration says."""
    try:
        listings.find_sources(config.data)
    except UserError as error:
        return Check("data", False, str(error))
    return Check("data", True, str(config.data.root))


def model_checks(settings: RequestSettings) -> list[Check]:
    """What the model's card warns of, whether a cap can be kept, and the terms."""
    title = f"model {settings.model}"
    day, card = models.today(), models.card(settings.model)
    gone = card is not None and card.after == "error" and card.is_shut_down(day)
    checks = [
        Check(title, False if gone else None, line, "Set generate.model to a model that lasts.")
        for line in models.notices(settings.model, day)
    ]
    price = cost.price(settings, tier=settings.tier)
    if price is not None:
        checks.append(Check(f"price of {settings.model}", True, f"{price}, tier {settings.tier}, on {day}"))
    else:
        advice = "Set generate.prices; {input: 0, output: 0} for a server of your own."
        known = None if settings.max_dollars is None else False
        checks.append(Check(f"price of {settings.model}", known, "unknown: no cap can be kept", advice))
    return checks + [Check("terms", True, line) for line in models.terms_lines(settings.model)]


def key_checks(settings: RequestSettings) -> list[Check]:
    """Whether each key is set and can generate: its models are listed, and a tiny request is sent (paid, below $0.001)."""
    return [_key_check(name, settings) for project in settings.projects for name in project.keys]


def _key_check(name: str, settings: RequestSettings) -> Check:
    title = f"API key {name}"
    key = os.environ.get(name, "").strip()
    if not key and settings.library != "openai_compatible":  # a server of one's own asks for none
        advice = f"export {name}=... before launching; it is never written to the run's files"
        return Check(title, False, "not set", advice)
    if not re.fullmatch(r"[!-~]*", key):  # a library's own error about it would show it
        return Check(title, False, "holds a character that no key has, such as a space", "Set it to the key alone.")
    found = check_key(settings, key)
    detail = found.detail.replace(key, "...") if key else found.detail
    return Check(title, found.ok, detail, found.advice)


def weights_check(name: str, weights: str) -> Check:
    """Whether a model's weights are there: a folder, or in the cache of the hub."""
    title = f"weights of {name}"
    if Path(weights).is_dir():
        there = (Path(weights) / "config.json").is_file()
        return Check(
            title, there, f"{weights}{'' if there else ' has no config.json'}", "Give a folder in transformers' format."
        )
    if not is_hub_name(weights):
        return Check(title, None, f"{weights} is not there yet", "It must be before train and evaluate start.")
    if commit := hub_commit(weights):
        return Check(title, True, f"{weights} is in the cache, commit {commit[:12]}")
    advice = f"Where nodes are offline, first run: hf download {weights}  (with HF_HOME on a shared file system)"
    return Check(title, None, f"{weights} is not in the cache and would be downloaded", advice)
