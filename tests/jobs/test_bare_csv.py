"""Somebody who has only a CSV and a folder of images trains with one command."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
import yaml

from data_prep.files import read_jsonl
from data_prep.outcomes import UserError
from data_prep.records import Example
from jobs.config import DEFAULT_CONFIG, load_config
from jobs.pipeline import steps_of
from jobs.run.layout import RunDir
from tests.conftest import launch, output
from tests.vqa.training_data import make_material


def test_a_csv_and_a_folder_of_images_lead_to_a_report_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ABO_ROOT", raising=False)
    material = make_material(tmp_path / "material", count=24)
    asked: dict[str, list[dict[str, str]]] = {}
    for example in material.examples:
        asked.setdefault(example.image_id, []).append({"question": example.question, "answer": example.answer})
        (tmp_path / "pics").mkdir(exist_ok=True)
        source = material.images / example.image_path
        (tmp_path / "pics" / f"{example.image_id}.png").write_bytes(source.read_bytes())
    with (tmp_path / "my.csv").open("w", newline="") as file:
        rows = [[f"item-{image}", image, repr(qas)] for image, qas in asked.items()]
        csv.writer(file).writerows([["item_id", "image_id", "qas"], *rows])
    model = {"kind": "blip", "weights": str(material.weights), "batch_size": 8, "gradient_accumulation": 1}
    values = {
        "data.dataset_csv": "my.csv",
        "data.images": "pics",
        "models": yaml.safe_dump({"blip": model}, default_flow_style=True).strip(),
        "train.epochs": "1",
        "evaluate.bertscore_model": "null",
        "curate.same_image": "keep",
    }
    options = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    command = ["--cluster", "local", "--run-dir", "run", "--stages", "curate,train,evaluate,report", *options]
    refused = launch(*command, cwd=tmp_path)
    assert refused.returncode == 1 and "--set curate.missing_category=keep" in output(refused)
    done = launch(*command, "--set", "curate.missing_category=keep", cwd=tmp_path)
    assert done.returncode == 0, output(done)
    run = RunDir(tmp_path / "run")
    assert run.predictions_table("blip", "lora").is_file()
    assert json.loads((run.report / "report.json").read_text())["models"]["blip"]["questions"] > 0
    first, second, *_ = sorted((tmp_path / "pics").iterdir())
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    again = launch(*command, "--set", "curate.missing_category=keep", cwd=tmp_path)
    assert again.returncode == 2 and "train:blip took" in output(again), output(again)
    sha = {
        row.image_id: row.image_sha256
        for name in ("train", "val", "test")
        for row in read_jsonl(run.split(name), Example)
    }
    assert sha[first.stem] == hashlib.sha256(other).hexdigest(), (
        "old questions never stand beside another image unnoticed"
    )


def test_a_csv_takes_the_place_of_the_stages_before_curate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABO_ROOT", raising=False)
    config = load_config(DEFAULT_CONFIG, ["data.dataset_csv=some/my.csv"])
    assert [step.stage for step in steps_of(config)][:2] == ["curate", "train"]
    assert config.data.dataset_csv == Path("some/my.csv").absolute()
    assert config.data.root == Path.cwd()
    with pytest.raises(UserError, match="ABO_ROOT"):
        load_config(DEFAULT_CONFIG)


def test_files_are_read_in_the_order_of_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABO_ROOT", raising=False)
    for number in (10, 2, 1):
        (tmp_path / f"dataset_{number}.csv").touch()
    config = load_config(DEFAULT_CONFIG, [f"data.dataset_csv={tmp_path}/dataset_*.csv"])
    assert [file.name for file in config.data.csv_files()] == [f"dataset_{number}.csv" for number in (1, 2, 10)]
