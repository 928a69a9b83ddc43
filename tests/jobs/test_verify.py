"""Second opinions in a run: planted truths are found again, and through kills nothing is paid for twice."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.demo.catalogue import render
from data_prep.files import read_jsonl
from data_prep.generate import cost
from data_prep.records import Example, Opinions
from data_prep.stand_in import StandIn, StandInOptions
from data_prep.verify.second_opinion import blind_quizzes, quizzes
from jobs.config import load_config
from jobs.run.layout import RunDir, Step
from jobs.shards.journal import ReadReport
from jobs.shards.store import read_records
from jobs.stages.verify import BLIND, SEEN, Verify, blind_shape, opinions, seen_shape
from tests.conftest import environment, launch, launch_args, launch_command, output, write_config
from vqa.evaluation.metrics import exact_match

# What the planted generator does, as shares of all questions. Half of what it takes from the listing is not what the image shows.
LISTING, GUESSABLE, WRONG = 0.20, 0.15, 0.10
OPINION_ERROR, COPIES = 0.10, 0.5
DATA_STAGES = "prepare,validate,generate,curate,verify"


@dataclass(frozen=True)
class Planted:
    """What is known of one question."""

    kind: str  # listing, guessable, wrong, fine
    truth: str


def plant(facts: Path, seed: int = 0) -> dict[str, Planted]:
    """Give the stand-in's facts truths, and each question words of its own; returns question → what is planted."""
    rows = [json.loads(line) for line in facts.read_text().splitlines()]
    words = sorted({pair["answer"] for row in rows for pair in row["qas"]} - {"yes", "no"})
    draw, planted = random.Random(seed), {}
    for number, row in enumerate(rows):
        for pair in row["qas"]:
            pair["question"] = re.sub(r"[?]?$", f" in picture {number}?", pair["question"], count=1)
            other = draw.choice([word for word in words if word != pair["answer"]])
            place, truth = draw.random(), pair["answer"]
            kind = "fine"
            if place < LISTING:
                kind = "listing"
                if draw.random() < 0.5:
                    truth = other
            elif place < LISTING + GUESSABLE:
                kind, pair["guessable"] = "guessable", True
            elif place < LISTING + GUESSABLE + WRONG:
                kind, truth = "wrong", other
            if truth != pair["answer"]:
                pair["truth"] = truth
            planted[pair["question"]] = Planted(kind, truth)
    facts.write_text("\n".join(map(json.dumps, rows)))
    return planted


@dataclass(frozen=True)
class Verified:
    """A finished run of the planted catalogue."""

    run: RunDir
    config: Path
    planted: Mapping[str, Planted]
    rows: Sequence[Example]
    opinions: Mapping[str, Opinions]


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Verified:
    folder = tmp_path_factory.mktemp("verified")
    render(folder / "catalogue", products=300, seed=5)
    planted = plant(folder / "catalogue/facts.jsonl")
    stand_in = {
        "answers": str(folder / "catalogue/facts.jsonl"),
        "opinion_error": OPINION_ERROR,
        "opinion_copies": COPIES,
    }
    config = write_config(
        folder / "c.yaml",
        folder / "catalogue",
        generate={"stand_in": stand_in},
        verify={"enabled": True, "split": "all"},
    )
    done = launch(*launch_args(config, folder / "run", "--stages", DATA_STAGES))
    assert done.returncode == 0, output(done)
    run, settings = RunDir(folder / "run"), load_config(config)
    rows = [row for name in ("train", "val", "test") for row in read_jsonl(run.split(name), Example)]
    return Verified(run, config, planted, rows, opinions(run, settings, rows))


def confusion(verified: Verified, field: str) -> dict[str, Counter[str]]:
    """What was planted against one field of the opinions."""
    found: dict[str, Counter[str]] = {}
    for row in verified.rows:
        planted = verified.planted[row.question]
        kind = planted.kind + ("" if planted.truth == row.answer else ", not right")
        found.setdefault(kind, Counter())[str(getattr(verified.opinions[row.id], field))] += 1
    return found


def test_planted_errors_are_contested_and_guessable_questions_guessed(verified: Verified) -> None:
    assert len(verified.rows) > 1_200
    seen, blind = confusion(verified, "seen"), confusion(verified, "blind")
    for name, table in (("with the image", seen), ("without it", blind)):
        for kind, counts in sorted(table.items()):
            print(f"{name:15} {kind:20} {dict(sorted(counts.items()))}")
    wrong = sum((counts for kind, counts in seen.items() if kind.endswith("not right")), Counter[str]())
    right = sum((counts for kind, counts in seen.items() if not kind.endswith("not right")), Counter[str]())
    # The opinions err in 10 % of all cases; half of that repeats a wrong answer, which one in four of the wrong ones then hides.
    assert 0.65 < wrong["contested"] / wrong.total() < 0.85
    assert 0.92 < right["agreed"] / right.total() < 0.98
    guessable = blind["guessable"]
    others = sum((counts for kind, counts in blind.items() if kind != "guessable"), Counter[str]())
    assert guessable["right"] / guessable.total() > 0.8 > 0.2 > others["right"] / others.total()
    assert seen.keys() == {"fine", "guessable", "listing", "listing, not right", "wrong, not right"}


@pytest.mark.parametrize("learned", [0.0, 0.6], ids=["honest", "taught the errors"])
def test_the_score_on_agreed_questions_is_nearer_to_the_truth_than_that_on_all(
    verified: Verified, learned: float
) -> None:
    draw = random.Random(3)

    def says(row: Example) -> str:
        if draw.random() < learned:
            return row.answer
        return verified.planted[row.question].truth if draw.random() < 0.7 else "nothing"

    said = {row.id: says(row) for row in verified.rows}

    def off(rows: Sequence[Example]) -> float:
        """Measured against generated answers, minus what is true of the same questions."""
        measured = sum(exact_match(row.answer, said[row.id]) for row in rows)
        return (measured - sum(exact_match(verified.planted[row.question].truth, said[row.id]) for row in rows)) / len(
            rows
        )

    agreed = [row for row in verified.rows if verified.opinions[row.id].seen == "agreed"]
    print(f"measured minus true: on all {off(verified.rows):+.3f}, on the {len(agreed)} agreed {off(agreed):+.3f}")
    assert abs(off(verified.rows)) > 0.05
    assert abs(off(agreed)) < 0.5 * abs(off(verified.rows))


def test_the_dataset_says_nothing_of_opinions_and_the_cap_counts_them(verified: Verified) -> None:
    text = (verified.run.split("test")).read_text()
    assert "agreed" not in text and "contested" not in text and '"seen"' not in text
    status = json.loads(launch("status", verified.run.path, "--json").stdout)
    verify = next(step for step in status["steps"] if step["step"] == "verify")
    assert (verify["state"], verify["done"]) == ("done", len({row.item_id for row in verified.rows}))
    blind = sum(record.value["input_tokens"] for record in records(verified.run, BLIND))
    seen = sum(record.value["input_tokens"] for record in records(verified.run, SEEN))
    assert verify["input_tokens"] == seen + blind and blind > 0


def records(run: RunDir, kind: str) -> list[Any]:
    return [record for record in read_records(run.opinions(kind), ReadReport()) if record.value is not None]


def test_an_opinion_about_other_words_or_another_image_does_not_count(verified: Verified) -> None:
    config = load_config(verified.config)
    known = opinions(verified.run, config, verified.rows)
    split, before = verified.run.split("test"), verified.run.split("test").read_bytes()
    first = next(read_jsonl(split, Example))
    try:
        split.write_bytes(before.replace(first.question.encode(), b"What is quite another question?", 1))
        changed = list(read_jsonl(split, Example))
        found = opinions(verified.run, config, changed)
        same = [row for row in changed if row.item_id == first.item_id]
        assert {found[row.id].seen for row in same} == {"unchecked"}  # their request was about other questions
        assert sum(found[row.id].seen == known[row.id].seen for row in changed) >= len(changed) - len(same)
    finally:
        split.write_bytes(before)


def test_off_by_default_nothing_is_asked_and_no_step_is_there(tmp_path: Path, catalogue: Path) -> None:
    config = load_config(write_config(tmp_path / "c.yaml", catalogue))
    assert not config.verify.enabled and config.verify.split == "test"
    from jobs.pipeline import steps_of

    assert "verify" not in {step.stage for step in steps_of(config)}
    on = load_config(tmp_path / "c.yaml", ["verify.enabled=true"])
    assert [step.stage for step in steps_of(on)][3:5] == ["curate", "verify"]
    assert on.verify.stand_in == on.generate.stand_in and on.verify.model != on.generate.model


def test_to_keep_agreed_rows_alone_needs_opinions_of_them(tmp_path: Path, catalogue: Path) -> None:
    path = write_config(tmp_path / "c.yaml", catalogue)
    with pytest.raises(ValueError, match=r"set verify\.enabled: true and verify\.split: all"):
        load_config(path, ["train.keep=agreed", "verify.enabled=true"])
    assert load_config(path, ["train.keep=agreed", "verify.enabled=true", "verify.split=all"]).train.keep == "agreed"


def test_the_plan_prices_both_kinds_of_request_as_long_as_the_prompts_are(
    tmp_path: Path, catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "not-a-key")
    config = write_config(tmp_path / "c.yaml", catalogue, generate={"endpoint": "http://127.0.0.1:1"})
    off = output(launch("plan", "--config", config))
    assert "verify: off" in off
    on = output(launch("plan", "--config", config, "--set", "verify.enabled=true", "--set", "verify.split=all"))
    assert "verify: gemini-3.6-flash" in on and "with image" in on and "without" in on
    questions = [f"What color is the handle of the large mug {n}?" for n in range(200)]
    rows = [
        Example(f"{n}", f"B{n // 5:03}", f"i{n // 5}", "", text, "red", "", "color", "MUG")
        for n, text in enumerate(questions)
    ]
    stage = Verify(RunDir(tmp_path / "run"), load_config(config, ["verify.enabled=true"]))
    first = next(quizzes(rows))
    tokens = len(stage.prompter.prompt(first)) / 4  # about four characters a token
    assert 0.7 < tokens / seen_shape().prompt_tokens < 1.3
    blind = stage.prompter_of(with_image=False)
    quiz = next(quiz for quiz in blind_quizzes(rows, 10) if len(quiz.products) > 5)
    assert 0.7 < len(blind.prompt(quiz)) / 4 / blind_shape(len(quiz.products)).prompt_tokens < 1.3
    # The cap reserves for each request what the longest may take.
    assert blind_shape(2 * 15).prompt_tokens < cost.MOST_PROMPT_TOKENS


# --- kills


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, StandIn]]:
    """A curated run's configuration and the server that is asked."""
    monkeypatch.setenv("GEMINI_API_KEY", "not-a-key")
    render(tmp_path / "catalogue", products=80, seed=9)
    plant(tmp_path / "catalogue/facts.jsonl")
    with StandIn(tmp_path / "catalogue/facts.jsonl", StandInOptions(latency=0.15)) as server:
        config = write_config(
            tmp_path / "c.yaml",
            tmp_path / "catalogue",
            generate={"endpoint": server.url, "concurrency": 4},
            verify={"enabled": True, "split": "all", "blind_products": 4, "concurrency": 2},
        )
        early = launch(*launch_args(config, tmp_path / "run", "--stages", "prepare,validate,generate,curate"))
        assert early.returncode == 0, output(early)
        yield config, server


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)], ids=["terminated", "killed"]
)
def test_through_kills_and_resumption_nothing_recorded_is_paid_twice(
    shop: tuple[Path, StandIn], tmp_path: Path, number: signal.Signals
) -> None:
    config, server = shop
    run, stage = RunDir(tmp_path / "run"), None
    command = launch_command(*launch_args(config, run.path, "--stages", "verify"))
    kills, asked_again = 0, 0
    for _ in range(40):
        answered = answered_quizzes(server)
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and len(answered_quizzes(server)) < len(answered) + 12:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, number)
            kills += 1
        out = process.communicate(timeout=60)[0].decode()
        if process.returncode == 0:
            break
    else:
        raise AssertionError(out)
    assert kills >= 3, out
    stage = Verify(run, load_config(config))
    expected = [len(list(source.items())) for source in stage.sources()]
    on_disk = [Counter(record.key for record in records(run, kind)) for kind in (SEEN, BLIND)]
    assert [len(found) for found in on_disk] == expected
    assert all(count == 1 for found in on_disk for count in found.values())
    asked = Counter(answered_quizzes(server))
    asked_again = asked.total() - len(asked)
    assert len(asked) == sum(expected)
    if number == signal.SIGTERM:
        assert asked_again == 0
    else:  # what was on its way at a kill is lost: two tasks with two requests each
        assert asked_again <= 4 * kills


def answered_quizzes(server: StandIn) -> list[str]:
    """A quiz for each reply that the server sent and billed."""
    return [entry["quiz"] for entry in list(server.entries) if entry.get("quiz") and entry["outcome"] == "ok"]


@pytest.mark.slow  # it trains two models
def test_one_run_trains_on_all_and_on_agreed_questions_and_compares_both(tmp_path: Path) -> None:
    render(tmp_path / "catalogue", products=60, seed=7)
    plant(tmp_path / "catalogue/facts.jsonl")
    config = write_config(
        tmp_path / "ablation.yaml",
        tmp_path / "catalogue",
        verify={"enabled": True, "split": "all"},
        evaluate={"control": 0},
    )
    tree = yaml.safe_load(config.read_text())
    blip = tree["models"].pop("blip")
    tree["models"] |= {f"blip_{keep}": {**blip, "keep": keep} for keep in ("all", "agreed")}
    config.write_text(yaml.safe_dump(tree))
    run = RunDir(tmp_path / "run")
    done = launch(*launch_args(config, run.path))
    assert done.returncode == 0, output(done)
    agreed = list(read_jsonl(run.step_folder(Step("train", "blip_agreed")) / "agreed/train.jsonl", Example))
    every = list(read_jsonl(run.split("train"), Example))
    assert 0.7 * len(every) < len(agreed) < 0.95 * len(every)
    said = opinions(run, load_config(config), every)
    assert {row.id for row in agreed} == {row.id for row in every if said[row.id].seen == "agreed"}
    report = json.loads((run.report / "report.json").read_text())
    assert {"blip_agreed", "blip_all"} in [set(c["names"]) for c in report["comparisons"] if c["variant"] == "lora"]
    parts = {part["name"]: part["questions"] for part in report["truth"]["parts"]["blip_agreed"]}
    assert parts["all"] == parts["agreed"] + parts["contested"] and parts["not guessed blind"] < parts["all"]
    assert [row["question_type"] for row in report["truth"]["guessable"]]
    page = (run.report / "index.html").read_text()
    assert "How guessable each question type is" in page and "another model, with the image" in page
    again = launch(*launch_args(config, run.path, "--stages", "train,evaluate"))
    assert again.returncode == 0 and "are agreed, and kept" not in output(again)  # nothing is done twice
