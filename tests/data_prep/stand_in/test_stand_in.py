"""The stand-in as a process of its own, and what it says of requests that no client of ours would send."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_prep.generate import workers
from data_prep.outcomes import UserError
from tests.data_prep.generate.conftest import KEY, Outcomes, Shop, settings_for


@contextmanager
def stand_in_process(answers: Path, *options: str) -> Iterator[str]:
    """The stand-in, started by its command; its URL."""
    command = [sys.executable, "-m", "data_prep.stand_in", "--answers", str(answers), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            assert process.wait(10) == 0


def ask(shop: Shop, url: str, **changes: object) -> Outcomes:
    outcomes = Outcomes()
    settings = settings_for(url, **changes)
    workers.generate_all(
        outcomes.todos(shop.products),
        image_root=shop.root,
        settings=settings,
        ledger=shop.ledger,
        quota_folder=shop.quota,
    )
    return outcomes


def test_the_command_serves_with_every_option(shop: Shop, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    options = {
        "--port": "0",
        "--latency": "0.01",
        "--fault": "fences=0.5",
        "--seed": "3",
        "--retry-delay": "0.2",
        "--requests-per-minute": "600",
        "--tokens-per-minute": "600000",
        "--requests-per-day": "1000",
        "--key": KEY,
        "--model": "gemini-3.5-flash-lite",
        "--retired": "gemini-2.0-flash",
        "--thoughts": "50",
        "--log": str(log),
    }
    with stand_in_process(shop.answers, *[word for option in options.items() for word in option]) as url:
        outcomes = ask(shop, url)
    assert len(outcomes.ok) == len(shop.products)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {e["outcome"] for e in entries} == {"ok", "fences"}
    assert {e["key"] for e in entries} == {KEY[-4:]} and KEY not in log.read_text()
    assert all(e["answered"] - e["at"] >= 0.01 for e in entries)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--requests-per-minute", "3"], "status_429"),
        (["--tokens-per-minute", "4000"], "status_429"),
        (["--fault", "status_503=1"], "status_503"),
    ],
)
def test_the_commands_limits_are_kept(shop: Shop, options: list[str], reason: str) -> None:
    with (
        stand_in_process(shop.answers, "--retry-delay", "0.01", *options) as url,
        pytest.raises(UserError, match=f"Every request failed.*{reason}"),
    ):
        ask(shop, url, max_retries=0, outage_minutes=0.001)


@pytest.mark.parametrize(
    ("options", "says"), [(["--fault", "nonsense=1"], "Known: status_429"), (["--fault", "hang"], "KIND=SHARE")]
)
def test_a_wrong_option_is_one_line(shop: Shop, options: list[str], says: str) -> None:
    command = [sys.executable, "-m", "data_prep.stand_in", "--answers", str(shop.answers), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("options", "code"), [([], 200), (["--fault", "status_402=1"], 402)])
def test_a_request_without_an_image_tries_the_account_and_is_not_billed(
    shop: Shop, options: list[str], code: int
) -> None:
    with stand_in_process(shop.answers, *options) as url:
        body = json.dumps({"contents": [{"parts": [{"text": "hello"}]}]}).encode()
        request = urllib.request.Request(f"{url}/v1beta/models/x:generateContent", body)
        try:
            answered = urllib.request.urlopen(request).status
        except urllib.error.HTTPError as error:
            answered = error.code
    assert answered == code


def test_models_are_listed_as_gemini_and_as_openai_list_them(shop: Shop) -> None:
    with stand_in_process(shop.answers, "--model", "gemini-x") as url:
        gemini = urllib.request.Request(f"{url}/v1/models", headers={"x-goog-api-key": KEY})
        openai = urllib.request.Request(f"{url}/v1beta/openai/models", headers={"authorization": f"Bearer {KEY}"})
        (model,) = json.load(urllib.request.urlopen(gemini))["models"]
        (other,) = json.load(urllib.request.urlopen(openai))["data"]
    assert model["name"] == "models/gemini-x" and "generateContent" in model["supportedGenerationMethods"]
    assert other["id"] == "gemini-x"
