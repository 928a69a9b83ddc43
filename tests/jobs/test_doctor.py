"""``doctor`` tells what is wrong with an account, in the server's words, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from data_prep.generate.account import check_key
from data_prep.generate.settings import GenerateSettings
from data_prep.stand_in import messages
from jobs.verbs.doctor import key_checks, model_checks
from tests.api_server import MODEL, serve


def settings(url: str, **changes: Any) -> GenerateSettings:
    return GenerateSettings.model_validate({"endpoint": url, "timeout": 5.0, **changes})


GOOD = messages.gemini_reply("[]", "STOP", MODEL)


@pytest.mark.parametrize("generator", ["google_genai", "google_generativeai"])
def test_a_good_key_lists_models_and_generates_with_the_clients_own_version(generator: str) -> None:
    with serve(body=GOOD) as (url, seen):
        found = check_key(settings(url, generator=generator), "key")
    assert found.ok is True and found.detail == f"accepted; {MODEL} answers"
    (listed, _), (generated, request) = seen
    assert listed.startswith("/v1beta/models") and generated.startswith(f"/v1beta/models/{MODEL}:generateContent")
    assert int(request["generationConfig"]["maxOutputTokens"]) == 256


def test_google_s_own_path_for_openai_clients_is_reached() -> None:
    reply = messages.openai_reply("[]", "STOP", MODEL)
    with serve(body=reply, listed={"data": [{"id": f"models/{MODEL}"}]}) as (url, seen):
        found = check_key(settings(f"{url}/v1beta/openai/", generator="openai_compatible"), "key")
    assert found.ok is True
    assert [path for path, _ in seen] == ["/v1beta/openai/models", "/v1beta/openai/chat/completions"]


@pytest.mark.parametrize("generator", ["google_genai", "google_generativeai"])
@pytest.mark.parametrize(
    ("status", "message", "details", "advice"),
    [
        (400, "API key not valid. Please pass a valid API key.", [{"reason": "API_KEY_INVALID"}], "aistudio.google.com"),
        (403, "Gemini API has not been used in project 7 before or it is disabled.", [{"reason": "SERVICE_DISABLED"}], "enable"),
        (400, "User location is not supported for the API use.", [], "HTTPS_PROXY"),
        (403, "This API method requires billing to be enabled.", [{"reason": "BILLING_DISABLED"}], "billing at"),
        (402, "Your prepayment credits are depleted.", [], "top it up"),
        (429, "You exceeded your current quota, limit: 0, model: x", [], "enable billing"),
    ],
)  # fmt: skip
def test_each_trouble_of_an_account_is_told_in_the_servers_words_with_what_to_do(
    generator: str, status: int, message: str, details: list[dict[str, str]], advice: str
) -> None:
    error = {"error": {"code": status, "message": message, "status": "X", "details": typed(details)}}
    with serve(status=status, body=error) as (url, _):
        found = check_key(settings(url, generator=generator), "key")
    assert found.ok is False
    assert message[:40] in found.detail and advice in f"{found.detail} {found.advice}"


def typed(details: list[dict[str, str]]) -> list[dict[str, str]]:
    return [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "domain": "googleapis.com", **detail}
        for detail in details
    ]


def test_for_a_retired_model_the_successor_and_its_price_are_named() -> None:
    gone = {
        "error": {"code": 404, "message": "This model models/gemini-2.0-flash is no longer available.", "status": "X"}
    }
    with serve(status=404, body=gone) as (url, _):
        found = check_key(settings(url, model="gemini-2.0-flash"), "key")
    assert found.ok is False and "no longer available" in found.detail
    assert f"generate.model={MODEL} ($0.3 in and $2.5 out" in found.advice


def test_another_model_that_answers_is_named() -> None:
    with serve(body=messages.gemini_reply("[]", "STOP", "gemini-3.6-flash")) as (url, _):
        found = check_key(settings(url, model="gemini-3.5-flash"), "key")
    assert found.ok is None and "as gemini-3.6-flash" in found.detail and "gemini-3.6-flash ($0.75 in" in found.advice


def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AIzaSyVerySecret")
    error = {"error": {"code": 400, "message": "API key not valid: AIzaSyVerySecret", "status": "X"}}
    with serve(status=400, body=error) as (url, _):
        (check,) = key_checks(settings(url))
    assert check.ok is False and "VerySecret" not in check.detail + check.advice


def test_the_checks_of_the_model_warn_of_its_end_and_name_price_and_terms() -> None:
    checks = model_checks(GenerateSettings.model_validate({"model": "gemini-2.5-flash"}))
    said = {check.ok: f"{check.name} {check.detail}" for check in checks}
    assert "is shut down on 2026-12-01" in said[None] and "Additional Terms" in " ".join(c.detail for c in checks)
    (gone, *_) = model_checks(GenerateSettings.model_validate({"model": "gemini-2.0-flash"}))
    assert gone.ok is False
    (unknown,) = [
        check
        for check in model_checks(GenerateSettings.model_validate({"model": "gemini-9-flash", "max_dollars": 1}))
        if check.name.startswith("price")
    ]
    assert unknown.ok is False and "generate.prices" in unknown.advice
