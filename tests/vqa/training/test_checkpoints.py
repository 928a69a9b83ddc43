"""Checkpoints are complete or do not exist, and a training that was disturbed ends with the same adapter, bit for bit."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from data_prep.outcomes import Interrupted, UserError
from slurm.process import REQUEUE
from tests.vqa.training_data import (
    Material,
    checkpoint_steps,
    log,
    make_material,
    outcome,
    quick,
    start_worker,
    write_splits,
)
from vqa.training import checkpoints
from vqa.training.train import train


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Without a validation split: the adapter is then the last step's, which every step before it has shaped."""
    torch.set_num_threads(1)  # as in the processes that are compared with this one: sums depend on it
    folder = tmp_path_factory.mktemp("material")
    made = make_material(folder)
    return dataclasses.replace(made, data=write_splits(folder / "unvalidated", made.examples, []))


@pytest.fixture(scope="module")
def undisturbed(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that ran to its end in one go."""
    out = tmp_path_factory.mktemp("undisturbed")
    resume(material, out)
    return out


def resume(material: Material, out: Path) -> None:
    """Train to the end in this process, from the beginning or from what is there."""
    train("tiny", material.model(), quick(), data=material.data, image_root=material.images, out=out)


def disturb(material: Material, out: Path, number: signal.Signals, step: int) -> tuple[int, str]:
    """Train in a process that gets a signal once it has logged a step."""
    worker = start_worker(material, out, material.model(), quick())
    while len(log(out)) < step:
        assert worker.process.poll() is None, worker.ended()
        time.sleep(0.002)
    worker.process.send_signal(number)
    code, said = worker.ended()
    assert not (out / "adapter").exists(), said
    return code, said


def test_training_killed_at_a_random_step_ends_with_the_same_adapter(
    material: Material, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = random.randrange(4, 11)
    code, _ = disturb(material, tmp_path, signal.SIGKILL, step)
    assert code == -signal.SIGKILL
    resume(material, tmp_path)
    said = capsys.readouterr().out
    assert "resuming from checkpoint-" in said, said
    assert outcome(tmp_path) == outcome(undisturbed), f"killed at step {step}"
    same = [(line["step"], line["loss"], line["learning_rate"], line["grad_norm"]) for line in log(undisturbed)]
    assert [(line["step"], line["loss"], line["learning_rate"], line["grad_norm"]) for line in log(tmp_path)] == same


@pytest.mark.slow
def test_training_killed_again_and_again_ends_with_the_same_adapter(
    material: Material, undisturbed: Path, tmp_path: Path
) -> None:
    for step in sorted(random.sample(range(1, 12), 4)):
        lines = len(log(tmp_path))
        worker = start_worker(material, tmp_path, material.model(), quick())
        while worker.process.poll() is None and max([0, *(line["step"] for line in log(tmp_path)[lines:])]) < step:
            time.sleep(0.002)
        time.sleep(random.random() * 0.1)  # within a step, or within a save
        worker.process.kill()
        worker.ended()
    resume(material, tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)


def test_adapters_differ_where_the_seed_does(material: Material, undisturbed: Path, tmp_path: Path) -> None:
    """Else the comparisons above would say nothing."""
    train("tiny", material.model(), quick(seed=7), data=material.data, image_root=material.images, out=tmp_path)
    assert outcome(tmp_path) != outcome(undisturbed)


@pytest.mark.parametrize(
    "number", [signal.SIGUSR2, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=lambda s: s.name
)
def test_signal_saves_and_ends_and_resuming_loses_no_step(
    number: signal.Signals, material: Material, undisturbed: Path, tmp_path: Path
) -> None:
    code, said = disturb(material, tmp_path, number, random.randrange(1, 10))
    assert code == REQUEUE, said
    newest = checkpoints.newest_valid(tmp_path, processes=1, strategy="ddp")
    assert newest is not None
    assert newest.name == f"checkpoint-{log(tmp_path)[-1]['step']}", "the step in hand is the one that was saved"
    resume(material, tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)
    steps = [line["step"] for line in log(tmp_path)]
    assert steps == list(range(1, 13)), "no step is done twice"


def damaged(undisturbed: Path, out: Path, harm: str) -> str:
    """A training that lost its end, and whose newest checkpoint (step 12; the other is of step 9) is not as it was saved."""
    shutil.copytree(undisturbed, out, dirs_exist_ok=True)
    shutil.rmtree(out / "adapter")
    weights = out / "checkpoint-12" / "adapter_model.safetensors"
    if harm == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
    elif harm == "one bit flipped":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif harm == "a file lost":
        (out / "checkpoint-12" / "optimizer.pt").unlink()
    elif harm == "killed while it was saved":
        (out / "checkpoint-12" / "complete.json").unlink()
        (out / "checkpoint-12" / "scheduler.pt").unlink()
    else:
        (out / "checkpoint-12" / "complete.json").write_text('{"step": 12, "fil')
    return harm


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("truncated", "adapter_model.safetensors is not as it was saved"),
        ("one bit flipped", "adapter_model.safetensors is not as it was saved"),
        ("a file lost", "optimizer.pt is missing"),
        ("killed while it was saved", "its save was cut off"),
        ("manifest torn", "its manifest is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before_and_named(
    harm: str, words: str, material: Material, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(undisturbed, tmp_path, harm)
    resume(material, tmp_path)
    said = capsys.readouterr().out
    assert f"checkpoint-12 is skipped: {words}" in said
    assert "resuming from checkpoint-9" in said
    assert outcome(tmp_path) == outcome(undisturbed)
    assert checkpoints.problem(tmp_path / "checkpoint-12") == "", "the damaged one was saved anew"


def test_training_without_a_whole_checkpoint_begins_anew(
    material: Material, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(undisturbed, tmp_path, "truncated")
    os.truncate(tmp_path / "checkpoint-9" / "rng_state.pth", 10)
    resume(material, tmp_path)
    assert "training from the beginning" in capsys.readouterr().out
    assert outcome(tmp_path) == outcome(undisturbed)


def test_skipped_checkpoints_do_not_crowd_out_newer_ones(material: Material, undisturbed: Path, tmp_path: Path) -> None:
    damaged(undisturbed, tmp_path, "truncated")
    os.truncate(tmp_path / "checkpoint-9" / "rng_state.pth", 10)
    asked = iter([False] * 4 + [True] * 9)
    with pytest.raises(Interrupted):
        train(
            "tiny",
            material.model(),
            quick(),
            data=material.data,
            image_root=material.images,
            out=tmp_path,
            stop=lambda: next(asked),
        )
    newest = checkpoints.newest_valid(tmp_path, processes=1, strategy="ddp")
    assert newest is not None
    assert newest.name == "checkpoint-5"


def test_newest_checkpoints_are_kept(material: Material, undisturbed: Path, tmp_path: Path) -> None:
    assert checkpoint_steps(undisturbed) == [9, 12]
    settings = quick(keep_checkpoints=3, eval_steps=1, epochs=1.5)
    train("tiny", material.model(), settings, data=material.data, image_root=material.images, out=tmp_path)
    assert checkpoint_steps(tmp_path) == [4, 5, 6]


def test_leftovers_of_a_killed_save_do_not_get_into_the_checkpoint(material: Material, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "rng_state_7.pth").write_bytes(b"of an attempt with more processes")
    train("tiny", material.model(), quick(epochs=0.75), data=material.data, image_root=material.images, out=tmp_path)
    assert not (tmp_path / "checkpoint-3" / "rng_state_7.pth").exists()
    assert checkpoints.problem(tmp_path / "checkpoint-3") == ""


@pytest.mark.parametrize(("processes", "strategy"), [(2, "ddp"), (1, "zero2")])
def test_checkpoint_of_another_world_is_refused(processes: int, strategy: str, undisturbed: Path) -> None:
    with pytest.raises(UserError) as refused:
        checkpoints.newest_valid(undisturbed, processes=processes, strategy=strategy)
    assert "made by 1 process with ddp" in str(refused.value)
    assert f"this is {processes} process{'es' if processes > 1 else ''} with {strategy}" in str(refused.value)
    assert "rename" in str(refused.value), "what to do is said"
