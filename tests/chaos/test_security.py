"""Loading a file runs no code, a run's files keep the umask's modes, and no name reaches a shell.

See also: keys in tests/data_prep/generate/test_security.py; the report's escaping in tests/vqa/report/test_report.py and
test_report_in_browser.py; names with quotes and ``$()`` through sbatch, on a real SLURM, in tests/slurm/test_on_slurm.py,
test_pipeline.py and test_by_hand.py, and through the local pool in tests/jobs/backends/test_pool.py; run directories with such names
through all seven stages in test_disk.py.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.run.layout import RunDir
from tests.conftest import ROOT, environment, launch, launch_args, launch_command, output, tiny_base, write_config
from vqa.training.checkpoints import MANIFEST, checkpoints, problem, seal

STAGES = "prepare,validate,generate,curate,train"


class Evil:
    """Leaves a file behind when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, catalogue: Path) -> tuple[Path, Path]:
    """A run up to train, and its configuration."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder / "c.yaml", catalogue)
    done = launch(*launch_args(config, folder / "run", "--stages", STAGES))
    assert done.returncode == 0, output(done)
    return folder / "run", config


def test_the_planted_pickle_runs_code_where_pickles_are_trusted(tmp_path: Path) -> None:
    """Proves that the tests below can fail."""
    torch.save(Evil(tmp_path / "ran"), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_pickle_planted_in_a_checkpoint_is_never_run(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run_dir, config = tmp_path / "run", trained[1]
    for forged in (False, True):
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.copytree(trained[0], run_dir)
        run = RunDir(run_dir)
        folder = run.stage_folder("train") / "blip"
        shutil.rmtree(run.adapter("blip"))
        (folder / "done.json").unlink()
        found = checkpoints(folder)
        assert found
        for checkpoint in found:
            for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
                torch.save(Evil(tmp_path / "ran"), checkpoint / name)
            assert problem(checkpoint)
            if forged:
                facts = json.loads((checkpoint / MANIFEST).read_text())
                seal(checkpoint, **{name: value for name, value in facts.items() if name != "files"})
                assert not problem(checkpoint)
        done = launch(*launch_args(config, run_dir, "--stages", STAGES))
        assert not (tmp_path / "ran").exists(), "code from a checkpoint was run"
        if forged:
            assert done.returncode == 1
            assert "Weights only load failed" in output(done)
        else:
            assert done.returncode == 0, output(done)
            log = "".join(path.read_text() for path in (run_dir / "logs/train-blip").iterdir())
            assert "is skipped: optimizer.pt is not as it was saved" in log


@pytest.mark.slow
@pytest.mark.parametrize("where", ["base", "adapter"])
def test_weights_that_come_as_a_pickle_run_no_code(
    trained: tuple[Path, Path], tmp_path: Path, catalogue: Path, where: str
) -> None:
    run = RunDir(trained[0])
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_base(), base)
    shutil.copytree(run.adapter("blip"), adapter)
    image = next((catalogue / "images").rglob("*.jpg"))
    request = (
        "predict",
        "--image",
        image,
        "--question",
        "What color is it?",
        "--weights",
        base,
        "--adapter",
        adapter,
    )
    assert launch(*request).returncode == 0
    folder, good, bad = {
        "base": (base, "model.safetensors", "pytorch_model.bin"),
        "adapter": (adapter, "adapter_model.safetensors", "adapter_model.bin"),
    }[where]
    (folder / good).unlink()
    torch.save(Evil(tmp_path / "ran"), folder / bad)
    done = launch(*request)
    assert done.returncode != 0
    assert not (tmp_path / "ran").exists(), "code from a file of weights was run"


def others(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode) & 0o077


@pytest.mark.parametrize(("umask", "allowed"), [(0o022, 0o055), (0o077, 0o000)])
def test_the_files_of_a_run_have_the_modes_that_the_umask_leaves(
    tmp_path: Path, catalogue: Path, umask: int, allowed: int
) -> None:
    config = write_config(tmp_path / "c.yaml", catalogue)
    command = launch_command(*launch_args(config, tmp_path / "run", "--stages", "prepare,validate"))
    shell = ["sh", "-c", f'umask {umask:03o}; exec "$@"', "sh", *command]
    subprocess.run(shell, cwd=ROOT, env=environment(), check=True, capture_output=True)
    paths = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert len(paths) > 10
    assert [path for path in paths if others(path) & ~allowed] == []


def test_nothing_in_this_project_asks_for_a_pickle_or_a_shell() -> None:
    """The linter's rules against pickle (S301), shell=True (S602) and os.system (S605) are on, without exceptions."""
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "S301,S302,S307,S506,S602,S604,S605", "--ignore-noqa", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in found.stdout.splitlines() if "-->" in line and "tests/" not in line]
    assert ours == [], found.stdout
