"""What a server's refusal means: for one product, for a key, for all."""

from __future__ import annotations

import pytest

from data_prep.generate.clients.errors import (
    DailyQuotaExhausted,
    FatalError,
    ItemRefused,
    KeyRejected,
    ModelGone,
    ProjectRefused,
    RetryableError,
    classify,
)

DAY = [{"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "1500"}]}]
NONE = [{"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel", "quotaValue": "0"}]}]


@pytest.mark.parametrize(
    ("status", "message", "details", "kind"),
    [
        (400, "Unable to process input image. Please retry or report in https://x", [], ItemRefused),
        (400, "Provided image is not valid.", [], ItemRefused),
        (400, "Unsupported MIME type: image/tiff", [], ItemRefused),
        (413, "Request payload size exceeds the limit: 20971520 bytes.", [], ItemRefused),
        (400, "API key not valid. Please pass a valid API key.", [], KeyRejected),
        (403, "Permission denied: Consumer has been suspended.", [], ProjectRefused),
        (400, "* GenerateContentRequest.generation_config.response_schema: unknown field", [], FatalError),
        (404, "models/gemini-9 is not found for API version v1beta", [], ModelGone),
        (302, "Found", [], FatalError),
        (429, "You exceeded your current quota", DAY, DailyQuotaExhausted),
        (429, "You exceeded your current quota", NONE, ProjectRefused),
        (429, "You exceeded your current quota, limit: 0, model: gemini-3.5-flash-lite", [], ProjectRefused),
        (429, "Resource has been exhausted", [{"retryDelay": "3.5s"}], RetryableError),
        (503, "The model is overloaded. Please try again later.", [], RetryableError),
        (408, "Request timeout", [], RetryableError),
        (429, "Resource has been exhausted (e.g. check quota).", [], RetryableError),
        (429, "Your project has exceeded its monthly spending cap.", [], ProjectRefused),
        (
            429,
            "Your prepayment credits are depleted. Please go to AI Studio to manage your billing.",
            [],
            ProjectRefused,
        ),
        (402, "Your prepayment credits are depleted.", [], ProjectRefused),
        (402, "Payment Required", [], ProjectRefused),
        (404, "This model models/gemini-2.0-flash is no longer available.", [], ModelGone),
        (403, "Generative Language API has not been used in project 1 before or it is disabled.", [], ProjectRefused),
        (403, "Your API key was reported as leaked. Please use another API key.", [], KeyRejected),
        (400, "User location is not supported for the API use.", [], FatalError),
        (400, "Gemini API free tier is not available in your country. Please enable billing.", [], ProjectRefused),
    ],
)
def test_every_refusal_concerns_the_right_one(status: int, message: str, details: list, kind: type[Exception]) -> None:
    error = classify(status, message, details)
    assert type(error) is kind, error
    if details and "retryDelay" in details[0]:
        assert isinstance(error, RetryableError) and error.delay == 3.5 and error.throttled


def test_every_message_quotes_the_server_and_says_what_to_do() -> None:
    for status, words in [(402, "Pay up."), (404, "No longer available."), (400, "Thinking level is not supported.")]:
        error = classify(status, words, [])
        assert f'{status}: "{words}"' in str(error) and len(str(error)) > len(words) + 60
