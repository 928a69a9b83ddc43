"""Second opinions: what is asked and never shown, what a reply says, and what the stand-in answers."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.files import file_digest
from data_prep.generate.workers import ask_all
from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import Example, Reply
from data_prep.stand_in import StandIn, StandInOptions
from data_prep.verify.second_opinion import Quiz, SecondOpinion, answers, asked_in, blind_quizzes, quizzes
from data_prep.verify.settings import VerifySettings, inherited

QUESTIONS = ("What color is the mug?", "How many handles does it have?")


def example(item: int, number: int, **fields: Any) -> Example:
    row = Example(
        f"{item}-{number}",
        f"B{item:03}",
        f"i{item}",
        f"{item}.png",
        QUESTIONS[number],
        "secret",
        "easy",
        "color",
        "MUG",
    )
    return replace(row, **fields)


def rows(products: int) -> list[Example]:
    return [example(item, number) for item in range(products) for number in range(2)]


def reply(text: str | None, finish: str = "STOP") -> Reply:
    return Reply("B000", "i0", text, finish, "m", 1, 1, 0.0)


def test_the_listing_and_the_generators_answer_are_never_shown(tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), "red").save(tmp_path / "0.png")
    (quiz,) = quizzes(rows(1))
    seen = SecondOpinion(VerifySettings(), tmp_path, with_image=True).request(quiz, ())
    assert seen.image and all(question in seen.prompt for question in QUESTIONS)
    assert "secret" not in seen.prompt and "MUG" not in seen.prompt
    blind = SecondOpinion(VerifySettings(), tmp_path, with_image=False).request(quiz, ())
    assert blind.image == b"" and "secret" not in blind.prompt and "B000" not in blind.prompt


def test_a_reply_is_joined_by_number_whatever_its_order_and_trimmings() -> None:
    (quiz,) = quizzes(rows(1))
    text = 'Sure:\n```json\n[{"n": 2, "answer": "Two."}, {"n": "1", "answer": " red"}, {"n": 9, "answer": "x"}]\n```'
    assert answers(quiz, reply(text)) == {"0-0": "red", "0-1": "two"}
    assert answers(quiz, reply('[{"n": 1, "answer": "light blue"}]')) == {}  # one word was asked for
    assert answers(quiz, reply(None)) == answers(quiz, reply("red, two")) == {}


def test_a_reply_of_no_use_is_a_paid_failure_and_one_with_gaps_is_asked_again(tmp_path: Path) -> None:
    prompter = SecondOpinion(VerifySettings(), tmp_path, with_image=True)
    (quiz,) = quizzes(rows(1))
    nothing, some, full = (
        reply(text)
        for text in ("?", '[{"n": 1, "answer": "red"}]', '[{"n": 1, "answer": "red"}, {"n": 2, "answer": "two"}]')
    )
    failed = prompter.outcome(quiz, nothing)
    assert isinstance(failed, Failed) and failed.retry and failed.value == nothing and failed.reason == "no_opinion"
    assert isinstance(prompter.outcome(quiz, some), Ok) and prompter.violations(quiz, some) is not None
    assert prompter.violations(quiz, full) is None


def test_blind_requests_hold_many_products_and_a_new_product_changes_only_its_own() -> None:
    before = list(blind_quizzes(rows(200), 10))
    assert sum(len(quiz.questions) for quiz in before) == 400
    assert 5 < 200 / len(before) < 20 and all(len(quiz.products) <= 20 for quiz in before)
    after = list(blind_quizzes([*rows(200), example(77, 0, item_id="B077x", id="new")], 10))
    assert len({quiz.item_id for quiz in before} - {quiz.item_id for quiz in after}) <= 2


def test_the_stand_in_tells_a_quiz_from_a_request_for_questions(tmp_path: Path) -> None:
    (quiz,) = quizzes(rows(1))
    prompter = SecondOpinion(VerifySettings(), tmp_path, with_image=False)
    assert asked_in(prompter.prompt(quiz)) == [(1, QUESTIONS[0]), (2, QUESTIONS[1])]
    assert asked_in("Write exactly five questions. Answer each.\n1. one") == []


def test_one_key_turns_it_on_with_another_model_and_the_rest_of_generate() -> None:
    found = VerifySettings.model_validate(inherited({"enabled": True}, {"max_dollars": 20, "shards": 4, "max_asks": 5}))
    assert (found.enabled, found.split, found.max_dollars, found.shards, found.max_asks) == (True, "test", 20, 4, 2)
    assert found.model == "gemini-3.6-flash" and found.thinking == "minimal"
    assert inherited({}, {"model": "gemini-3.6-flash"})["model"] == "gemini-3.5-flash-lite"
    own = inherited({"endpoint": "http://mine"}, {"stand_in": {"answers": "x"}, "generator": "google_genai"})
    assert "stand_in" not in own and own["endpoint"] == "http://mine"
    old = VerifySettings.model_validate(inherited({}, {"generator": "google-generativeai", "thinking": None}))
    assert old.generator == "google_genai", "the old library cannot tell another model how much to think"


PRODUCTS = 300


def planted(tmp_path: Path) -> tuple[Path, list[Example]]:
    """Facts with a wrong answer in one question of four, and a guessable one in five; and the dataset's rows about them."""
    facts, dataset = [], []
    for item in range(PRODUCTS):
        path = tmp_path / f"{item}.png"
        Image.new("RGB", (20, 20), (item % 256, item // 256 * 90, 7)).save(path)
        pairs = []
        for number in range(2):
            text, n = f"What is property {number} of item {item}?", item * 2 + number
            pair = {"question": text, "answer": f"given{chr(97 + n % 20)}", "category": "easy", "guessable": n % 5 == 0}
            pairs.append(pair | ({"truth": f"truth{chr(97 + n % 20)}"} if n % 4 == 0 else {}))
            dataset.append(example(item, number, question=text, answer=pair["answer"], id=f"{n}"))
        facts.append({"image_sha256": file_digest(path), "qas": pairs})
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    return tmp_path / "facts.jsonl", dataset


def ask(url: str, asked: list[Quiz], tmp_path: Path, *, with_image: bool, **how: Any) -> dict[str, str]:
    """Question id → the opinion that was given."""
    settings = VerifySettings.model_validate({"endpoint": url, "max_retries": 2, **how})
    recorded: dict[str, Ok | Failed] = {}
    lock = threading.Lock()

    def note(quiz: Quiz, outcome: Ok | Failed, *, durable: bool = False) -> None:
        with lock:
            recorded[quiz.item_id] = outcome

    todos = (Todo(quiz, lambda outcome, quiz=quiz, **kw: note(quiz, outcome, **kw)) for quiz in asked)
    prompter = SecondOpinion(settings, tmp_path, with_image=with_image)
    folders = {name: tmp_path / f"{name}-{with_image}" for name in ("ledger", "quota", "batches")}
    batches = folders["batches"] if settings.tier == "batch" else None
    ask_all(todos, prompter, ledger=folders["ledger"], quota_folder=folders["quota"], batches_folder=batches)
    assert len(recorded) == len(asked) and all(isinstance(one, Ok) for one in recorded.values()), recorded
    return {q: word for quiz in asked for q, word in answers(quiz, recorded[quiz.item_id].value).items()}


@pytest.mark.parametrize("error", [0.0, 0.2])
def test_the_stand_in_answers_both_kinds_with_the_errors_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "test-key")
    facts, dataset = planted(tmp_path)
    with StandIn(facts, StandInOptions(opinion_error=error, opinion_copies=0.5)) as server:
        seen = ask(server.url, list(quizzes(dataset)), tmp_path, with_image=True)
        blind = ask(server.url, list(blind_quizzes(dataset, 20)), tmp_path, with_image=False)
    kinds: Counter[str] = Counter()
    for n, row in enumerate(dataset):
        truth = row.answer.replace("given", "truth") if n % 4 == 0 else row.answer
        kinds["right" if seen[row.id] == truth else "copied" if seen[row.id] == row.answer else "invented"] += 1
        kinds["guessed"] += blind[row.id] == row.answer
    total = len(dataset)
    if not error:
        assert kinds == {"right": total, "guessed": total / 5}
    else:
        assert kinds["copied"] / total == pytest.approx(0.1, abs=0.03)
        assert kinds["invented"] / total == pytest.approx(0.1, abs=0.03)
        assert kinds["guessed"] / total == pytest.approx(0.2 * 0.8 + 0.8 * 0.2, abs=0.06)


@pytest.mark.parametrize(
    "how",
    [
        {"generator": "google_genai"},
        {"generator": "google_generativeai"},
        {"generator": "openai_compatible"},
        {"tier": "batch", "batch": {"at_least": 2, "poll_seconds": 0.05}},
    ],
    ids=lambda how: str(how.get("generator", "batch")),
)
def test_any_client_and_the_batch_api_give_both_kinds_of_opinion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "test-key")
    facts, dataset = planted(tmp_path)
    dataset = dataset[:60]
    with StandIn(facts, StandInOptions()) as server:
        seen = ask(server.url, list(quizzes(dataset)), tmp_path, with_image=True, **how)
        blind = ask(server.url, list(blind_quizzes(dataset, 4)), tmp_path, with_image=False, **how)
    assert seen == {
        row.id: row.answer.replace("given", "truth") if n % 4 == 0 else row.answer for n, row in enumerate(dataset)
    }
    assert sum(blind[row.id] == row.answer for row in dataset) == 12
