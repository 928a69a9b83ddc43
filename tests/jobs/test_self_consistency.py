"""A generator that is asked twice: what counts as the same question, and the verb over a real run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from data_prep.records import QAPair
from data_prep.stand_in import StandIn
from data_prep.verify.self_consistency import self_consistency
from tests.conftest import launch, launch_args, output, write_config


def test_questions_that_ask_the_same_are_compared_and_others_are_not() -> None:
    first = {"A": [QAPair("What color is the mug?", "red", "easy"), QAPair("How many handles?", "one", "easy")]}
    second = {
        "A": [
            QAPair("Which colour does the mug have?", "maroon", "easy"),
            QAPair("How many handles?", "one", "easy"),
            QAPair("Is it for coffee?", "yes", "easy"),
        ],
        "B": [QAPair("What is it?", "lamp", "easy")],
    }
    found = self_consistency(first, second, 0.75)
    assert (found.products, found.questions, found.asked_both_times, found.same_answer) == (1, 3, 2, 1)
    assert found.same_answer_share == 0.5
    assert found.different_answers == [["A", "What color is the mug?", "red", "maroon"]]


def test_no_question_in_common_is_no_consistency_of_zero() -> None:
    first, second = {"A": [QAPair("What color is it?", "red", "")]}, {"A": [QAPair("How many legs?", "four", "")]}
    assert self_consistency(first, second, 0.75).same_answer_share is None


def test_a_sample_is_asked_about_again_under_the_same_cap_and_shown_in_the_report(
    tmp_path: Path, catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "not-a-key")
    with StandIn(catalogue / "facts.jsonl") as server:
        config = write_config(tmp_path / "c.yaml", catalogue, generate={"endpoint": server.url, "max_dollars": 1.0})
        run = tmp_path / "run"
        early = launch("self-consistency", run)
        assert early.returncode == 2, output(early)
        done = launch(*launch_args(config, run, "--stages", "prepare,validate,generate,curate,report"))
        assert done.returncode == 0, output(done)
        before = Counter(entry["image"] for entry in server.entries)
        for _ in range(2):  # the second time it is all there
            again = launch("self-consistency", run, "--products", "7")
            assert again.returncode == 0, output(again)
        asked = Counter(entry["image"] for entry in server.entries) - before
    assert sorted(asked.values()) == [1] * 7
    assert "(100.0%) got the same answer" in output(again)
    assert json.loads((run / "3_generate/self_consistency.json").read_text())["products"] == 7
    status = json.loads(launch("status", run, "--json").stdout)
    assert next(step for step in status["steps"] if step["step"] == "generate")["state"] == "done"
    assert launch("report", run).returncode == 0
    assert "were asked about twice" in (run / "8_report/index.html").read_text()
