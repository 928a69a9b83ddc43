"""What can go wrong with a request, told apart in one place; `data_prep.generate.workers` decides by these classes alone.

=================  ======================================================  ===============================================
class              when                                                    what is done
=================  ======================================================  ===============================================
`TryAgain`         429, 500, 502, 503, 504, broken connection, time-out    pause, then the same request again, a few times
`Unreachable`      refused, no such name, no route to the server           the same; then the task ends, the product is left
`ItemRefused`      blocked for safety, recitation, no candidate            this product fails, with the reason
`KeyRejected`      400 API_KEY_INVALID, 401, 403                           this key is set aside; without keys: `Hopeless`
`DailyQuotaGone`   429 that names a daily quota                            the task ends; the run goes on the next day
`Hopeless`         unknown model, bad certificate, a quota of 0, a         the task ends at once
                   redirect, any other 4xx
=================  ======================================================  ===============================================
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterable
from typing import Any

from data_prep.outcomes import UserError

RETRIED = {408, 429, 500, 502, 503, 504}
_NO_WAY_THERE = {errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}


# What servers say of an image that they cannot use; another product's may be good.
_IMAGE = re.compile(
    r"\b(?:unable to process|invalid|unsupported)\b.*\b(?:image|mime|inline data)|\bimage\b.*\b(?:not valid|invalid|unsupported)",
    re.I,
)


class GeneratorError(Exception):
    """Anything that went wrong with one request."""


class TryAgain(GeneratorError):
    """The same request may succeed later."""

    def __init__(self, message: str, *, reason: str, delay: float | None = None, throttled: bool = False) -> None:
        super().__init__(message)
        self.reason = reason  # counted: status_503, connection, timeout
        self.delay = delay  # seconds that the server asks to wait
        self.throttled = throttled  # too many requests: slow down


class Unreachable(TryAgain):
    """No connection came about: nothing was sent, nothing is paid, and no product is to blame."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="connection")


class ItemRefused(GeneratorError):
    """The model will not answer for this product, however often it is asked."""

    def __init__(self, reason: str, detail: str = "", *, input_tokens: int = 0, output_tokens: int = 0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.input_tokens, self.output_tokens = input_tokens, output_tokens  # paid all the same: what it thought, too


class KeyRejected(GeneratorError):
    """This API key does not work."""

    key = ""  # filled in by the one who sent it; never part of the message


class DailyQuotaGone(UserError):
    """Nothing more can be asked of this project today."""


class Hopeless(UserError):
    """No request can succeed until the user changes something."""


def classify(status: int, message: str, details: Iterable[Any] | None) -> Exception:
    """The error for an HTTP status, the server's words and Google's error details (as JSON objects).

    Args:
        status: HTTP status.
        message: the server's words; never contains the key, which travels in a header.
        details: entries, of which those count that are such as ``{"@type": ".../RetryInfo", "retryDelay": "3s"}``.
    """
    reasons, quotas, delay = set(), [], None
    for detail in details or ():
        if not isinstance(detail, dict):
            continue  # a proxy's own error body
        reasons.add(detail.get("reason"))
        delay = seconds(detail["retryDelay"]) if "retryDelay" in detail else delay
        quotas += [quota for quota in detail.get("violations") or () if isinstance(quota, dict)]
    words = " ".join(message.split())[:300]
    if "API_KEY_INVALID" in reasons or status in (401, 403) or (status == 400 and "API key not valid" in message):
        return KeyRejected(f"{status} {words}")
    if status == 429:
        ids = [str(quota.get("quotaId", "")) for quota in quotas]
        if any(str(quota.get("quotaValue", "")) == "0" for quota in quotas) or re.search(r"limit: 0\b", message):
            return Hopeless(
                f"The quota of this project for this model is 0 ({words}). Choose another model or another project, or "
                f"enable billing."
            )
        if any("PerDay" in name for name in ids):
            return DailyQuotaGone(f"the daily quota is used up ({', '.join(ids)})")
    if status in RETRIED:
        return TryAgain(f"{status} {words}", reason=f"status_{status}", delay=delay, throttled=status == 429)
    if status == 413 or (status == 400 and _IMAGE.search(message)):
        return ItemRefused("image_refused", words)
    if 300 <= status < 400:
        return Hopeless(
            f"The server redirects to another address ({status}), where the key is not sent. Set generate.endpoint to that "
            f"address; a network's sign-in page does this, too."
        )
    if status == 404:
        return Hopeless(f"The model or endpoint does not exist ({words}). Set generate.model to one that does.")
    return Hopeless(f"The server refuses the request: {status} {words}")


def broken(error: BaseException) -> Exception:
    """The error for a request whose connection failed, from what lies at the bottom of a library's exception.

    All of the three libraries wrap what the system said, each in its own way.
    """
    bottom = error
    while cause := bottom.__cause__ or bottom.__context__:
        bottom = cause
    if isinstance(bottom, ssl.SSLCertVerificationError):
        return Hopeless(
            f"The certificate of the server is not to be trusted: {bottom.verify_message}. Nothing was sent. Either "
            f"generate.endpoint names another server than meant, or somebody reads along. Where that is your site's own "
            f"proxy or server, set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to the file of its certificate."
        )
    if isinstance(bottom, TimeoutError):
        return TryAgain("no answer in time", reason="timeout")
    if isinstance(bottom, socket.gaierror):
        return Unreachable(f"its name does not resolve ({bottom.strerror})")
    if isinstance(bottom, OSError) and bottom.errno in _NO_WAY_THERE:
        return Unreachable(str(bottom.strerror))
    return TryAgain(f"the connection broke: {type(bottom).__name__}: {bottom}", reason="connection")


def seconds(text: str | float | int) -> float | None:
    """A duration such as ``3s`` or ``3.5s``."""
    try:
        return float(str(text).removesuffix("s"))
    except ValueError:
        return None
