"""The demo's model learns to look: the whole of ``launch.py demo``, question type by question type."""

from __future__ import annotations

import dataclasses
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from data_prep.curate.blind_floor import blind_floor
from data_prep.files import read_jsonl
from data_prep.records import Example
from jobs.run.layout import LORA, VARIANTS, RunDir
from jobs.run.run import load_run
from jobs.stages.evaluate import Evaluate
from tests.conftest import environment, launch_command
from vqa.evaluation.metrics import exact_match
from vqa.inference.samples import evaluate_on_samples
from vqa.models.base import model_class
from vqa.models.lora import load_adapter
from vqa.settings import EvaluateSettings, ModelSettings

KINDS = {"color", "count", "object", "pattern", "shape", "yes/no"}


@pytest.mark.slow
def test_the_demo_learns_every_type_of_question_from_the_images(tmp_path: Path) -> None:
    command = launch_command("demo", "--run-dir", tmp_path / "demo", "--workers", "2")
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(tmp_path / "demo")
    test = list(read_jsonl(run.split("test"), Example))
    guessed = blind_floor(list(read_jsonl(run.split("train"), Example)), test).by_question_type
    floor = {kind: share for kind, share in guessed.items() if share is not None}
    evaluate = Evaluate(*load_run(run.path), "blip")
    answers = {name: {p.id: p.answer for p in evaluate.answers(name)[0]} for name in VARIANTS}
    right = {name: shares(test, found) for name, found in answers.items()}
    elsewhere = shares(test, with_another_image(run, test, tmp_path))
    assert set(floor) == KINDS
    for kind in KINDS:
        assert right[LORA][kind] >= floor[kind] + 0.2, kind
        assert elsewhere[kind] <= floor[kind] + 0.15, f"{kind}: answered without looking"
        said, truth = (
            most_frequent([e for e in test if e.question_type == kind], found)
            for found in (answers[LORA], {e.id: e.answer for e in test})
        )
        assert said <= truth + 0.15, f"{kind}: one answer to nearly everything"
    assert sum(right["base"][kind] < floor[kind] for kind in KINDS) >= 4


def shares(test: Sequence[Example], answers: Mapping[str, str]) -> dict[str, float]:
    """Exact match by question type."""
    by_kind: dict[str, list[float]] = {}
    for example in test:
        by_kind.setdefault(example.question_type, []).append(exact_match(example.answer, answers[example.id]))
    return {kind: sum(found) / len(found) for kind, found in by_kind.items()}


def most_frequent(examples: Sequence[Example], answers: Mapping[str, str]) -> float:
    """The share of the most frequent answer."""
    return Counter(answers[example.id] for example in examples).most_common(1)[0][1] / len(examples)


def with_another_image(run: RunDir, test: Sequence[Example], folder: Path) -> dict[str, str]:
    """The fine-tuned model's answers where each image is another product's."""
    paths = sorted({example.image_path for example in test})
    other = dict(zip(paths, paths[1:] + paths[:1], strict=True))
    model = model_class("blip").load(ModelSettings(weights=str(folder / "demo-base")))
    # Without its digest any image may be shown.
    asked = [dataclasses.replace(e, image_path=other[e.image_path], image_sha256="") for e in test]
    images = folder / "demo-catalogue/images/small"
    rows = evaluate_on_samples(load_adapter(model, run.adapter("blip")), asked, images, EvaluateSettings())
    return {row.id: row.text for row in rows}
