"""What each library puts into a request, as it arrives at a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data_prep.generate.account import check_key
from data_prep.generate.clients import google_genai
from data_prep.generate.clients.base import Request
from data_prep.generate.clients.openai_compatible import base_url
from data_prep.generate.settings import GenerateSettings
from data_prep.stand_in import messages
from tests.api_server import MODEL, serve


def sent(model: str = MODEL, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Path and body of a request under these settings."""
    openai = changes.get("generator") == "openai_compatible"
    body = (messages.openai_reply if openai else messages.gemini_reply)("[]", "STOP", model)
    with serve(body=body) as (url, seen):
        settings = GenerateSettings.model_validate({"endpoint": url, "model": model, **changes})
        assert check_key(settings, "key").ok is not False
    return seen[-1]


@pytest.mark.parametrize(
    ("model", "changes", "thinking"),
    [
        # The library sends these two in the spelling of protobuf, which Google's JSON takes as well.
        (MODEL, {}, {"thinking_level": "MINIMAL"}),
        ("gemini-3.8-flash", {"thinking": "low"}, {"thinking_level": "LOW"}),
        ("gemini-2.5-flash", {"thinking": "minimal"}, {"thinking_budget": 0}),
        ("gemini-2.5-flash", {"thinking": "medium"}, {"thinking_budget": 8192}),
        (MODEL, {"thinking": None}, None),
        ("gemini-9-flash", {}, None),  # without a card nothing is sent that it may refuse
    ],
)
def test_google_genai_sends_how_much_to_think(model: str, changes: dict[str, Any], thinking: object) -> None:
    path, body = sent(model, **changes)
    assert path.startswith(f"/v1beta/models/{model}:generateContent")
    assert body["generationConfig"].get("thinkingConfig") == thinking


@pytest.mark.parametrize("resolution", ["low", "medium", "high"])
def test_google_genai_sends_the_resolution(resolution: str) -> None:
    _, body = sent(media_resolution=resolution)
    assert body["generationConfig"]["mediaResolution"] == f"MEDIA_RESOLUTION_{resolution.upper()}"


def test_the_temperature_is_sent_only_where_it_is_set() -> None:
    for generator in ("google_genai", "google_generativeai"):
        assert "temperature" not in sent(generator=generator)[1]["generationConfig"]
        assert sent(generator=generator, temperature=0.5)[1]["generationConfig"]["temperature"] == 0.5
    assert "temperature" not in sent(generator="openai_compatible")[1]


def test_every_library_asks_for_exactly_five_objects() -> None:
    config = sent()[1]["generationConfig"]
    schema = config["responseJsonSchema"]
    assert (schema["type"], schema["minItems"], schema["maxItems"]) == ("array", 5, 5)
    old = sent(generator="google_generativeai")[1]["generationConfig"]["responseSchema"]
    assert (int(old["minItems"]), int(old["maxItems"])) == (5, 5) and set(old["items"]["properties"]) == {
        "question",
        "answer",
        "category",
    }
    form = sent(generator="openai_compatible")[1]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"] == schema


def test_an_openai_server_is_told_how_much_to_think_where_the_model_has_levels() -> None:
    assert sent(generator="openai_compatible")[1]["reasoning_effort"] == "minimal"
    assert "reasoning_effort" not in sent("Qwen/Qwen3-VL-8B-Instruct", generator="openai_compatible")[1]


def test_flex_is_a_field_of_single_requests_and_never_of_a_batch() -> None:
    assert sent(tier="flex", timeout=900)[1]["serviceTier"] == "flex"
    assert "serviceTier" not in sent()[1]
    client = google_genai.Client(GenerateSettings(tier="flex", timeout=900), "key", "http://127.0.0.1:9")
    (line,) = client.encode("B1", Request("prompt", b"\xff\xd8", "image/jpeg", 4096)).splitlines()
    config = json.loads(line)["request"]["generationConfig"]
    assert config["thinkingConfig"] == {"thinkingLevel": "MINIMAL"} and "serviceTier" not in config


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://node7:8000", "http://node7:8000/v1"),
        ("http://node7:8000/v1/", "http://node7:8000/v1"),
        ("http://proxy/team-a", "http://proxy/team-a/v1"),
        (
            "https://generativelanguage.googleapis.com/v1beta/openai/",
            "https://generativelanguage.googleapis.com/v1beta/openai",
        ),
        ("http://node7:8000/v1/chat/completions", "http://node7:8000/v1"),
    ],
)
def test_an_endpoint_with_or_without_its_version_leads_to_the_same_place(endpoint: str, url: str) -> None:
    assert base_url(endpoint) == url
