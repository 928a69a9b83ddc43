"""Validation raises the alarm while a model collapses, not only after the training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from data_prep.records import Example
from vqa.inference.samples import AnsweredSample
from vqa.settings import EvaluateSettings
from vqa.training.callbacks import ValidationCallback

NUMBERS = ("one", "two", "three", "four")


def sample() -> list[Example]:
    """Forty questions, of which the color ones are too few for the alarm."""
    return [
        Example(str(n), f"p{n}", f"i{n}", "", "?", NUMBERS[n % 4], "", "color" if n < 10 else "count", "MUG")
        for n in range(40)
    ]


class Answering(ValidationCallback):
    """Validation by a model that says what it is told to."""

    said = ""

    def _answers(self) -> tuple[list[AnsweredSample], list[AnsweredSample], list[float]]:
        answers = [
            AnsweredSample(e.id, e.question, e.answer, self.said or e.answer, 1.0, not self.said) for e in self.sample
        ]
        return answers, [AnsweredSample("synthetic", "What color is the circle?", "red", "red", 1.0, True)], [1.5, 0.5]


@pytest.mark.parametrize(("said", "alarm"), [("three", 'count (30 of 30 answers are "three")'), ("", "")])
def test_a_collapse_is_printed_and_logged_with_the_validation(
    said: str, alarm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model: Any = None
    callback = Answering(model, sample(), tmp_path, tmp_path, every=5, patience=0, answering=EvaluateSettings())
    callback.said = said
    callback.trainer = SimpleNamespace(  # type: ignore[assignment]
        require_finite=lambda: None, save_model=lambda *_, **__: None, is_world_process_zero=lambda: True
    )
    callback.validate(SimpleNamespace(global_step=5, epoch=1.0), SimpleNamespace())  # type: ignore[arg-type]
    line = orjson.loads((tmp_path / "validation.jsonl").read_bytes())
    assert line["collapsed"] == alarm
    assert line["loss"] == 1.0
    assert (f"step 5: the answers have collapsed on {alarm}" in capsys.readouterr().out) == bool(alarm)
