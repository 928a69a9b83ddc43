"""The README of a trained adapter: where it comes from, how good it is, how to use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_prep.files import file_digest, read_json
from data_prep.records import TEACHER_FILE, Teacher, from_dict
from vqa.models.lora import ParameterTable
from vqa.settings import ModelSettings, TrainSettings
from vqa.training.callbacks import Best

# As their cards on the hub said on 2026-11-24.
BASE_LICENSES = {"Salesforce/blip-vqa-base": "bsd-3-clause", "dandelin/vilt-b32-finetuned-vqa": "apache-2.0"}
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the card states."""

    name: str  # of the model in this project
    model: ModelSettings
    settings: TrainSettings
    parameters: ParameterTable
    best: Best | None  # the validation that chose this adapter; None without a validation split
    batch: str  # the effective batch in words: "4 x 4 on 2 processes (ddp)"
    data: Path  # the folder of the curated splits, whose digests identify the training data
    added_answers: int  # answers that the adapter's output layer has and the base does not

    def render(self) -> str:
        """The card as Markdown with the hub's YAML header."""
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=False,  # Markdown, not HTML
            undefined=StrictUndefined,
            trim_blocks=True,
            keep_trailing_newline=True,
        )
        facts = {name: getattr(self, name) for name in self.__slots__}
        digests = {f"{split}_digest": file_digest(self.data / f"{split}.jsonl") for split in ("train", "val")}
        told = read_json(self.data / TEACHER_FILE)
        return environment.get_template("card.md").render(
            facts | digests,
            lora=self.model.lora,
            teacher=from_dict(Teacher, told) if told else None,
            base_license=BASE_LICENSES.get(self.model.weights, "other"),
        )
