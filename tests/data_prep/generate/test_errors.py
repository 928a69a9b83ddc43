"""What a server's refusal means: for one product, for a key, for all."""

from __future__ import annotations

import pytest

from data_prep.generate.clients.errors import (
    DailyQuotaExhausted,
    FatalError,
    ItemRefused,
    KeyRejected,
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
        (403, "Permission denied: Consumer has been suspended.", [], KeyRejected),
        (400, "* GenerateContentRequest.generation_config.response_schema: unknown field", [], FatalError),
        (404, "models/gemini-9 is not found for API version v1beta", [], FatalError),
        (302, "Found", [], FatalError),
        (429, "You exceeded your current quota", DAY, DailyQuotaExhausted),
        (429, "You exceeded your current quota", NONE, FatalError),
        (429, "You exceeded your current quota, limit: 0, model: gemini-3.5-flash-lite", [], FatalError),
        (429, "Resource has been exhausted", [{"retryDelay": "3.5s"}], RetryableError),
        (503, "The model is overloaded. Please try again later.", [], RetryableError),
        (408, "Request timeout", [], RetryableError),
    ],
)
def test_every_refusal_concerns_the_right_one(status: int, message: str, details: list, kind: type[Exception]) -> None:
    error = classify(status, message, details)
    assert type(error) is kind, error
    if details and "retryDelay" in details[0]:
        assert isinstance(error, RetryableError) and error.delay == 3.5 and error.throttled
