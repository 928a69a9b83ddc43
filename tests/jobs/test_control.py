"""The stage evaluate asks its control like any questions: resumable, in folders of its own, never mixed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import file_digest, read_jsonl, write_json, write_jsonl
from data_prep.outcomes import Ok, Todo
from data_prep.records import Answered, Example, Prediction
from jobs.config import Config, validate_config
from jobs.run.layout import LORA, VARIANTS, RunDir, Step
from jobs.stages.base import StageMarker
from jobs.stages.evaluate import Evaluate, answers_of
from jobs.stages.report import Report
from tests.vqa.evaluation.test_control import split

FOLDERS = ("base", "lora", "control-swap", "control-grey")


class FakeModel:
    """Sees the color in an image of the split, says "three" to all else; ends after some answers if asked to."""

    def __init__(self, run: RunDir, most: int = 10**9) -> None:
        self.colors = {
            e.image_path: e.answer for e in read_jsonl(run.split("test"), Example) if e.question_type == "color"
        }
        self.left, self.seconds, self.waited, self.asked = most, 0.0, 0.0, Counter[str]()

    def process(self, todos: Iterator[Todo[Example]]) -> None:
        for todo in todos:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            e = todo.item
            self.asked[e.id] += 1
            looked = self.colors.get(e.image_path, "gray") if e.question_type == "color" else "three"
            answer = looked if todo.variant == "lora" else "nonsense"
            todo.record(Ok(Prediction(e.id, e.item_id, e.image_id, answer)))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run whose splits are there, and an adapter's marker."""
    run = RunDir(tmp_path)
    rows = [dataclasses.replace(e, image_sha256=f"sha of {e.image_path}") for e in split(90)]
    marker = StageMarker({"test": len(rows)}, {}, {}, {}, {}, 0.0, 0.0)
    for name in ("train", "val", "test"):
        write_jsonl(run.split(name), [dataclasses.replace(e, id=f"{name}-{e.id}") for e in rows])
    write_split(run, list(read_jsonl(run.split("test"), Example)))
    write_json(run.done_file(Step("train", "blip")), marker)
    return run


def write_split(run: RunDir, rows: list[Example]) -> None:
    """Write the test split and the marker of the stage that made it."""
    write_jsonl(run.split("test"), rows)
    outputs = {"test.jsonl": file_digest(run.split("test"))}
    write_json(run.done_file(Step("curate")), StageMarker({"test": len(rows)}, {}, {}, {}, outputs, 0.0, 0.0))


def configured(run: RunDir, **evaluate: Any) -> Config:
    sections = {"evaluate": {"shards": 2, "control": 150, "bertscore_model": None} | evaluate}
    return validate_config(sections | {"data": {"root": str(run.path)}, "models": {"blip": {}}}, "here")


def stage(run: RunDir, model: FakeModel | None = None, **evaluate: Any) -> Evaluate:
    made = Evaluate(run, configured(run, **evaluate), "blip")
    made.__dict__["_answerer"] = model or FakeModel(run)
    return made


def finish(run: RunDir, **evaluate: Any) -> None:
    for task in stage(run, **evaluate).pending():
        assert not stage(run, **evaluate).run(task, lambda: False).requeue


def answers(run: RunDir) -> dict[str, list[Answered]]:
    evaluate = stage(run)
    found = {variant: evaluate.answers(variant)[0] for variant in VARIANTS}
    return found | {f"control-{one.name}": answers_of(one, LORA)[0] for one in evaluate.controls()}


def test_the_controls_lie_in_folders_of_their_own_and_show_other_images(run: RunDir) -> None:
    finish(run)
    found = answers(run)
    assert [len(found[folder]) for folder in FOLDERS] == [270, 270, 150, 150]
    assert (
        {p.id for p in found["control-swap"]} == {p.id for p in found["control-grey"]} < {p.id for p in found["lora"]}
    )
    own = {p.id: p.image_id for p in found["lora"]}
    assert all(p.image_id != own[p.id] for p in found["control-swap"])
    colors = [p.answer for p in found["control-grey"] if p.answer != "three"]
    assert set(colors) == {"gray"}


def test_killed_in_the_control_it_goes_on_and_asks_nothing_twice(run: RunDir) -> None:
    stage(run).run(0, lambda: False)
    questions = 270 - len(answers(run)["lora"])
    model = FakeModel(run, most=2 * questions + 10)  # all of them by base and fine-tuned model, then into the control
    with pytest.raises(KeyboardInterrupt):
        stage(run, model).run(1, lambda: False)
    status = stage(run).status()
    assert status.state == "partial" and (status.done, status.items) == (270, 270)
    assert any("the control" in note for note in status.notes)
    assert stage(run).pending() == [1]
    again = FakeModel(run)
    stage(run, again).run(1, lambda: False)
    assert max((model.asked + again.asked).values()) <= 4, "base, fine-tuned and two controls"
    assert stage(run).pending() == [] and stage(run).status().state == "done"


def test_asked_to_stop_in_the_control_it_asks_to_be_started_again(run: RunDir) -> None:
    questions = len(list(stage(run).items()))
    model = FakeModel(run)
    result = stage(run, model, shards=1).run(0, lambda: model.asked.total() >= 2 * questions + 10)
    assert result.requeue
    assert model.asked.total() == 2 * questions + 10


def test_another_sample_or_other_images_are_never_mixed(run: RunDir) -> None:
    finish(run)
    rows = list(read_jsonl(run.split("test"), Example))
    write_split(run, [dataclasses.replace(e, image_sha256=e.image_sha256[::-1]) for e in rows])
    found = answers(run)
    assert [len(found[folder]) for folder in FOLDERS] == [0, 0, 0, 150], "a gray image is still the same"
    model = FakeModel(run)
    for task in stage(run, model).pending():
        stage(run, model).run(task, lambda: False)
    assert [len(answers(run)[folder]) for folder in FOLDERS] == [270, 270, 150, 150]
    assert model.asked.total() == 2 * 270 + 150
    assert len(stage(run, control=90).controls()[0].items()) == 90
    assert stage(run, control=90).pending(), "its markers are about the larger sample"
    fewer = FakeModel(run)
    for task in stage(run, control=90).pending():
        stage(run, fewer, control=90).run(task, lambda: False)
    assert not fewer.asked and stage(run, control=90).pending() == []


def test_without_a_control_nothing_is_asked_and_an_old_one_is_not_read(run: RunDir) -> None:
    finish(run, control=0)
    assert {path.name for path in run.stage_folder("evaluate").iterdir() if path.is_dir()} == {"blip-base", "blip-lora"}
    assert stage(run, control=150).pending() == [0, 1], "switched on later, the control alone is left"
    finish(run)
    assert "blip-control-swap" in Report(run, configured(run)).inputs()
    assert "blip-control-swap" not in Report(run, configured(run, control=0)).inputs()


def test_a_collapse_is_said_at_the_end_and_by_status_until_answers_change(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(run)
    said = 'collapsed on count (90 of 90 answers are "three")'
    assert said in capsys.readouterr().out
    assert any(said in warning for warning in stage(run).status().warnings())
    run.predictions("blip", "lora").done(0).unlink()
    assert not any("collapsed" in warning for warning in stage(run).status().warnings())
