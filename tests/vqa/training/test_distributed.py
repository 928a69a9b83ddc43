"""Several processes train as one does: DDP and DeepSpeed ZeRO on two processes of this machine's CPU (gloo)."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import time
from pathlib import Path

import orjson
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BlipForQuestionAnswering

from jobs.run.layout import RunDir, Step
from slurm.process import REQUEUE
from tests.conftest import ROOT, environment, heed_signals, launch, launch_args, launch_command, output, write_config
from tests.vqa.training_data import (
    EVERYWHERE,
    Material,
    Worker,
    log,
    make_material,
    outcome,
    quick,
    start_workers,
    write_splits,
)
from vqa.settings import ModelSettings
from vqa.training.train import train

BUILDS = pytest.mark.skipif(
    shutil.which("g++") is None, reason="DeepSpeed builds its CPU communication with g++, which is not here"
)
ZERO = {f"zero{stage}": pytest.param(f"zero{stage}", marks=[pytest.mark.slow, BUILDS]) for stage in (1, 2, 3)}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    torch.set_num_threads(1)
    return make_material(tmp_path_factory.mktemp("material"))


def model(material: Material, accumulation: int = 1) -> ModelSettings:
    """Without dropout, whose draws are each process's own."""
    lora = EVERYWHERE.model_copy(update={"dropout": 0.0})
    return material.model(lora=lora, gradient_accumulation=accumulation)


@pytest.fixture(scope="module")
def alone(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the global batch of two."""
    out = tmp_path_factory.mktemp("alone")
    train("tiny", model(material, 2), quick(), data=material.data, image_root=material.images, out=out)
    return out


def both_ended(workers: list[Worker]) -> tuple[list[int], str]:
    """The exit codes, and what was printed."""
    ends = [worker.ended() for worker in workers]
    return [code for code, _ in ends], "\n".join(said for _, said in ends)


@pytest.mark.parametrize("strategy", ["ddp", *ZERO.values()])
def test_two_processes_have_the_losses_and_the_adapter_of_one(
    strategy: str, material: Material, alone: Path, tmp_path: Path
) -> None:
    codes, said = both_ended(start_workers(2, material, tmp_path / "two", model(material), quick(strategy=strategy)))
    assert codes == [0, 0], said
    two = tmp_path / "two"
    for figure in ("loss", "grad_norm", "learning_rate"):
        expected = [line[figure] for line in log(alone)]
        assert [line[figure] for line in log(two)] == pytest.approx(expected, rel=1e-4), figure

    said_alone, said_two = ([row["answers"] for row in log(out, "validation.jsonl")] for out in (alone, two))
    assert len(said_two) == len(said_alone) == 2
    for ours, theirs in zip(said_two, said_alone, strict=True):
        assert [(row["id"], row["text"]) for row in ours] == [(row["id"], row["text"]) for row in theirs]

    for folder in ("adapter", "checkpoint-6"):
        mine, others = (load_file(out / folder / "adapter_model.safetensors") for out in (two, alone))
        assert mine.keys() == others.keys()
        assert all(torch.allclose(mine[name], others[name], atol=1e-4) for name in others), folder

    base = BlipForQuestionAnswering.from_pretrained(material.weights)
    loaded = PeftModel.from_pretrained(base, str(two / "adapter")).state_dict()
    for name, weight in load_file(two / "adapter" / "adapter_model.safetensors").items():
        place = name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        assert torch.equal(loaded[place], weight), "in plain peft every weight has a place"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", ZERO["zero2"], ZERO["zero3"]])
def test_asking_one_process_to_stop_saves_and_ends_both_and_resuming_loses_nothing(
    strategy: str, material: Material, tmp_path: Path
) -> None:
    settings = quick(strategy=strategy, epochs=6, eval_steps=100)  # two steps an epoch
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    codes, said = both_ended(start_workers(2, material, whole, model(material), settings))
    assert codes == [0, 0], said
    workers = start_workers(2, material, stopped, model(material), settings)
    while len(log(stopped)) < 4:  # in a later epoch, whose order is another
        assert workers[0].process.poll() is None, workers[0].ended()
        time.sleep(0.002)
    workers[1].process.send_signal(signal.SIGUSR2)
    codes, said = both_ended(workers)
    assert codes == [REQUEUE, REQUEUE], said
    codes, said = both_ended(start_workers(2, material, stopped, model(material), settings))
    assert codes == [0, 0], said
    assert "resuming from checkpoint-" in said
    assert [line["step"] for line in log(stopped)] == list(range(1, 13))
    assert [line["loss"] for line in log(stopped)] == [line["loss"] for line in log(whole)]
    assert outcome(stopped) == outcome(whole)


@pytest.mark.slow
def test_failure_in_one_process_ends_the_other_too(material: Material, tmp_path: Path) -> None:
    """The validation image that cannot be decoded is in one process's part of the sample."""
    (material.images / "broken.png").write_bytes(b"\x89PNG")
    known = material.validation[0]
    broken = dataclasses.replace(known, id="x", image_path="broken.png")
    data = write_splits(tmp_path / "data", material.examples, [known, broken])
    workers = start_workers(2, dataclasses.replace(material, data=data), tmp_path / "out", model(material), quick())
    codes, said = both_ended(workers)
    assert codes == [1, 1], said
    words = "An image of the curated dataset can no longer be used"
    assert f"error: {words}" in said
    assert (
        f"Another process of this training failed while answering the validation questions: UserError: {words}" in said
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two GPUs are named, and this machine has one")
def test_launch_on_a_machine_with_two_gpus_trains_in_two_processes_and_resumes(catalogue: Path, tmp_path: Path) -> None:
    """Where the named GPUs are not there, the processes train on the CPU: who starts them does not look."""
    config = write_config(tmp_path / "c.yaml", catalogue, train={"eval_steps": 2, "epochs": 4, "logging_steps": 1})
    command = launch_args(config, tmp_path / "run", "--stages", "prepare,validate,generate,curate,train")
    run = RunDir(tmp_path / "run")
    folder = run.step_folder(Step("train", "blip"))
    process = subprocess.Popen(
        launch_command(*command),
        stdout=subprocess.DEVNULL,
        env=environment(CUDA_VISIBLE_DEVICES="0,1"),
        cwd=ROOT,
        preexec_fn=heed_signals,
    )
    while not log(folder):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    stopped = max(folder.glob("checkpoint-*/complete.json"), key=lambda path: path.stat().st_mtime)
    assert orjson.loads(stopped.read_bytes())["processes"] == 2
    assert not run.adapter("blip").exists()

    done = launch(*command, CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 0, output(done)
    logs = "".join(path.read_text() for path in run.logs(Step("train", "blip")).glob("*.log"))
    assert logs.count(f"resuming from {stopped.parent.name}") == 1
    assert (run.adapter("blip") / "adapter_model.safetensors").is_file()
    assert "2 processes (ddp)" in (run.adapter("blip") / "README.md").read_text()
