"""What the GPU benchmark computes, on a CPU; that it measures a GPU can only be seen on one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from tests.conftest import ROOT, environment
from tests.vqa.tiny_models import ANSWERS, QUESTIONS, make_model, noise_images


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("Tesla T4", 65e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A10", 125e12),
        ("X", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(name: str, peak: float | None) -> None:
    assert gpu.peak_of(name) == peak
    assert gpu.utilization(1e9, 100.0, peak) == (None if peak is None else pytest.approx(1e11 / peak))


def test_operations_are_counted_under_inference_mode_too() -> None:
    left, right = torch.ones(8, 16), torch.ones(16, 4)
    with torch.inference_mode():
        assert gpu.operations(lambda: left @ right) == 2 * 8 * 16 * 4
        assert gpu.operations(lambda: torch.nn.functional.linear(left, right.T)) == 2 * 8 * 16 * 4


def test_answering_from_files_counts_all_answers_and_the_share_of_waiting(tmp_path: Path) -> None:
    make_model("blip", tmp_path / "weights")
    found = gpu.answer_from_files(tmp_path / "weights", tmp_path / "data", 6, "fp32", batch=10)
    assert found["questions"] == 30 and found["questions_per_second"] > 0 and found["gflop_per_question"] > 0
    assert 0 <= found["share_of_waiting"] <= 1


def test_a_training_step_takes_more_operations_than_its_forward_pass(tmp_path: Path) -> None:
    model = make_model("blip", tmp_path / "weights")
    batch = model.processor.collate(noise_images(), QUESTIONS, ANSWERS)
    with torch.no_grad():
        forward = gpu.operations(lambda: model.net(**batch)) / len(batch["input_ids"])
    assert gpu.training_operations(model, batch, "fp32") > forward


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_that_nothing_was_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "nothing was measured" in done.stderr
