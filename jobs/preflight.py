"""What a launch lacks, found before anything runs and said all at once. ``launch.py doctor`` looks at the same and more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.abo import listings
from data_prep.generate.settings import RequestSettings
from data_prep.outcomes import collected
from jobs.config import Config
from jobs.pipeline import make_stage
from jobs.run.contents import hub_commit
from jobs.run.layout import RunDir, Step
from jobs.stages.base import ShardedStage, StageMarker
from jobs.stages.status import is_complete
from vqa.settings import is_hub_name

LOW_DISK_BYTES = 10 * 2**30
FULL_DISK_BYTES = 2**20


def missing(run: RunDir, config: Config, steps: Sequence[Step]) -> list[str]:
    """What the steps need and do not have; of steps that are done nothing is asked. Nothing is sent, nothing is written.

    Args:
        run: where the run is to be; need not exist.
        config: what is to be run.
        steps: the steps to be run.
    """
    to_do = [step for step in steps if not _done(step, run, config)]
    stages = {step.stage for step in to_do}
    findings: list[str] = []
    if "prepare" in stages and "$" not in str(config.data.root):  # a variable that is not set was named already
        with collected(findings):
            listings.find_sources(config.data)
    asking = [settings for settings in (config.generate, config.verify) if settings.section in stages]
    keys = dict.fromkeys(name for settings in asking for name in missing_keys(settings))
    findings += [f"The API key {name} is not set: export {name}=..." for name in keys]
    trained = dict.fromkeys(step.target for step in to_do if step.stage in ("train", "evaluate"))
    findings += filter(None, (missing_weights(name, str(config.models[name].weights)) for name in trained))
    return findings


def _done(step: Step, run: RunDir, config: Config) -> bool:
    stage = make_stage(step, run, config)
    if isinstance(stage, ShardedStage):
        return stage.input_is_there() and is_complete(stage)
    return StageMarker.read(run, step) is not None


def missing_keys(settings: RequestSettings) -> Iterator[str]:
    """The environment variables of keys that are not set, where keys are needed."""
    if settings.stand_in is None and settings.library != "openai_compatible":  # a server of one's own asks for none
        names = (name for project in settings.projects for name in project.keys)
        yield from (name for name in names if not os.environ.get(name, "").strip())


def missing_weights(name: str, weights: str) -> str:
    """Why a model's weights cannot be loaded here; "" where they can, or can be downloaded."""
    if Path(weights).is_dir():
        if (Path(weights) / "config.json").is_file():
            return ""
        return f"The weights of {name} in {weights} have no config.json: give a folder in transformers' format."
    if not is_hub_name(weights):
        return f"The weights of {name} are not there: there is no folder {weights} (models.{name}.weights)."
    if "$" not in weights and os.environ.get("HF_HUB_OFFLINE") and hub_commit(weights) is None:
        return (
            f"The weights of {name}, {weights}, are not in the cache, and HF_HUB_OFFLINE is set: with internet, run "
            f"launch.py fetch."
        )
    return ""


def low_disk(path: Path) -> str:
    """How little room there is for checkpoints and records; "" where it is enough."""
    free = free_bytes(path)
    return (
        f"Only {free / 2**30:.1f} GiB are free at {path}: a whole run may need more." if free < LOW_DISK_BYTES else ""
    )


def full_disk(folder: Path) -> str:
    """What tasks cannot write into their logs where the disk that holds these is full; "" where it is not."""
    free = shutil.disk_usage(folder).free
    return f"No space left on device: {free // 1024:,} KB are free at {folder}" if free < FULL_DISK_BYTES else ""


def free_bytes(path: Path) -> int:
    """The room on the disk that a folder is or will be on."""
    existing = next((one for one in (path, *path.parents) if one.exists()), Path("/"))
    return shutil.disk_usage(existing).free
