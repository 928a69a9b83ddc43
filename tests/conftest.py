"""Shared by the tests: a small rendered catalog, a configuration for it, and real processes of launch.py."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import pytest
import yaml

from data_prep.demo.catalogue import render
from data_prep.demo.questions import vocabulary
from data_prep.generate.models import TODAY

# No deadline for property tests: a machine can be slow or loaded, and the first call imports modules.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

os.environ[TODAY] = (
    "2026-11-24"  # prices and shutdowns are looked up by date; the processes that tests start inherit it
)

# Quota is shared by all runs of a user: those of tests must not share it with real ones.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tests-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SAMPLE = SHARED / "abo_sample"


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty products and some dirt, in ABO's layout, with facts.jsonl for the stand-in."""
    folder = tmp_path_factory.mktemp("catalogue")
    render(folder, products=40, seed=3)
    return folder


@functools.cache
def tiny_base() -> Path:
    """Untrained weights of a tiny BLIP that knows the words of rendered catalogues."""
    from vqa.models.tiny import make_tiny_model  # torch: not for tests that never configure a run

    folder = Path(tempfile.mkdtemp(prefix="tiny-base-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_tiny_model("blip", folder, vocabulary())


def write_config(path: Path, catalogue: Path, **sections: dict[str, object]) -> Path:
    """Write a configuration that runs the whole pipeline in seconds; ``sections`` override parts of it."""
    tree: dict[str, dict[str, object]] = {
        "data": {"root": str(catalogue)},
        "validate": {"shards": 2},
        "generate": {"shards": 2, "stand_in": {"answers": str(catalogue / "facts.jsonl")}},
        "models": {"blip": {"kind": "blip", "weights": str(tiny_base()), "batch_size": 10, "gradient_accumulation": 1}},
        "train": {"epochs": 1, "eval_steps": 4, "learning_rate": 0.001, "validation_images": 10},
        "evaluate": {"shards": 2, "bertscore_model": None},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    if "endpoint" in tree["generate"]:
        del tree["generate"]["stand_in"]
    path.write_text(yaml.safe_dump(tree))
    return path


def launch_command(*arguments: str | Path) -> list[str]:
    """The command that runs launch.py with this interpreter."""
    return [sys.executable, str(ROOT / "launch.py"), *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, with one thread for torch, because several tests share the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}


def heed_signals() -> None:
    """As ``preexec_fn``: the process heeds SIGHUP and SIGINT even where this one was started to ignore them.

    A child inherits what is ignored: SIGHUP under nohup, SIGINT in the background of a script.
    """
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def launch(*arguments: str | Path, cwd: Path = ROOT, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run launch.py and wait for it."""
    return subprocess.run(
        launch_command(*arguments),
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def output(done: subprocess.CompletedProcess[str]) -> str:
    """Everything that a process printed."""
    return done.stdout + done.stderr


def launch_args(config: Path, run_dir: Path, *more: str) -> Sequence[str | Path]:
    """The arguments of a local launch."""
    return ["--cluster", "local", "--config", config, "--run-dir", run_dir, "--workers", "2", *more]
