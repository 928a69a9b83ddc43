"""What can go wrong with a request, told apart in one place. Everything else decides by these classes alone.

=====================  ===================================================  ===============================================
class                  when                                                 what happens
=====================  ===================================================  ===============================================
`RetryableError`       429, 500, 502, 503, 504, broken connection, timeout  pause, then the same request again; where every
                                                                            request fails for minutes, the task ends
`Unreachable`          refused, no such name, no route to the server        the same; then the task ends, the product is kept
`ItemRefused`          blocked for safety, recitation, no candidate         this product fails, with the reason
`KeyRejected`          400 API_KEY_INVALID, 401, 403                        this key is set aside; none left: `FatalError`
`ProjectRefused`       402, a spending cap, a quota of 0, no billing, the   this project is set aside; none left: the task
                       API is disabled                                      ends, and no product is given up
`DailyQuotaExhausted`  429 that names a daily quota                         the same; the run continues the next day
`ModelGone`            404: retired, or unknown                             `generate.successor` is asked instead; without
                                                                            one the task ends at once
`FatalError`           the location, a bad certificate, a redirect, any     the task ends at once
                       other 4xx
=====================  ===================================================  ===============================================

Only `ItemRefused` says something about a product. Every message quotes the server's own words.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterable
from typing import Any

from data_prep.generate.clients.base import RawReply
from data_prep.outcomes import UserError
from data_prep.records import Usage

RETRIED = {408, 429, 500, 502, 503, 504}
_UNREACHABLE = {errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}

# What servers say about an image that they cannot use; other products' images may be fine.
_IMAGE = re.compile(
    r"\b(?:unable to process|invalid|unsupported)\b.*\b(?:image|mime|inline data)|\bimage\b.*\b(?:not valid|invalid|unsupported)"
    r"|payload size exceeds",
    re.I,
)
# What Google says of an account, by the words of its message and the reason in its details, and what its owner can do. The
# status varies: a spending cap is a 429 like any other, except that it comes without RetryInfo.
_PROJECT = (
    (
        re.compile(r"SERVICE_DISABLED|has not been used in project|API\b(?! key).*\bdisabled", re.I),
        "The Gemini API is disabled in this project: enable it in the Google Cloud console, wait some minutes, and start again.",
    ),
    (
        re.compile(
            r"prepa(?:y|id)|credits? .*\b(?:depleted|exhausted|used up)|insufficient (?:funds|balance|credit)", re.I
        ),
        "The project's prepaid balance is empty: top it up at https://ai.studio/projects and start again.",
    ),
    (
        re.compile(r"spend(?:ing)?[ -](?:cap|limit)|budget (?:cap|limit)", re.I),
        "The project's spending cap is reached: raise it at https://ai.studio/spend, or start again next month.",
    ),
    (
        re.compile(
            r"BILLING_DISABLED|(?:enable|requires?|without|no) billing|billing .*\b(?:disabled|not enabled|closed)|free tier is not",
            re.I,
        ),
        "The project has no active billing account: enable billing at https://ai.studio/projects and start again.",
    ),
    (
        re.compile(r"CONSUMER_SUSPENDED|(?:project|consumer) .*\b(?:suspended|denied access)", re.I),
        "Google has suspended this project: use another, or appeal in the Google Cloud console.",
    ),
)
_LOCATION = re.compile(r"location is not supported|not available in your (?:country|region)", re.I)


_MAX_WORDS = 300  # characters of a server's message that are quoted


class GeneratorError(Exception):
    """Anything that went wrong with one request."""


class RetryableError(GeneratorError):
    """The same request may succeed later."""

    def __init__(self, message: str, *, reason: str, delay: float | None = None, throttled: bool = False) -> None:
        super().__init__(message)
        self.reason = reason  # counted: status_503, connection, timeout
        self.delay = delay  # seconds that the server asks to wait
        self.throttled = throttled  # too many requests: slow down


class Unreachable(RetryableError):
    """No connection was established: nothing was sent or billed, and the product is not the cause."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="connection")


class ItemRefused(GeneratorError):
    """The model will not answer for this product, however often it is asked."""

    def __init__(self, reason: str, detail: str = "", *, reply: RawReply | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.reply = reply  # what the server answered in place of a text
        self.usage = reply.usage if reply else Usage()  # billed all the same, thoughts included


class KeyRejected(GeneratorError):
    """This API key does not work."""

    key = ""  # set by the dispatcher; never part of the message


class DailyQuotaExhausted(UserError):
    """This project may not send any more requests today."""


class FatalError(UserError):
    """No request can succeed until the user changes something."""


class ProjectRefused(FatalError):
    """This project may not send any request until its owner changes something. Other projects may."""


class ModelGone(FatalError):
    """The model that was asked for does not answer any more, or never did."""


def classify(status: int, message: str, details: Iterable[Any] | None) -> Exception:
    """The error for an HTTP status, the server's message and Google's error details.

    Args:
        status: HTTP status.
        message: from the server. It never contains the key, which travels in a header.
        details: JSON objects such as ``{"@type": ".../RetryInfo", "retryDelay": "3s"}``; anything else is ignored.
    """
    reasons, quotas, delay = set(), [], None
    for detail in details or ():
        if not isinstance(detail, dict):
            continue  # a proxy's own error body
        reasons.add(str(detail.get("reason") or ""))
        delay = seconds(detail["retryDelay"]) if "retryDelay" in detail else delay
        quotas += [quota for quota in detail.get("violations") or () if isinstance(quota, dict)]
    words = " ".join(message.split())[:_MAX_WORDS]
    quoted = f'{status}: "{words}"'
    if "API_KEY_INVALID" in reasons or (status == 400 and "API key not valid" in message):  # Google answers it with 400
        return KeyRejected(f"{status} {words}")
    if error := _account_error(status, f"{' '.join(reasons)} {words}", quoted, waits=delay is not None):
        return error
    if status in (401, 403):
        return KeyRejected(f"{status} {words}")
    if status == 429:
        ids = [str(quota.get("quotaId", "")) for quota in quotas]
        # A quota of 0 never recovers, though it comes with a retryDelay like any other 429.
        if any(str(quota.get("quotaValue", "")) == "0" for quota in quotas) or re.search(r"limit: 0\b", message):
            return ProjectRefused(
                f"The server answers {quoted}. The quota of this project for this model is 0. Choose another model or another "
                f"project, or enable billing."
            )
        if any("PerDay" in name for name in ids):
            return DailyQuotaExhausted(f"the daily quota is used up ({', '.join(ids)})")
    if status in RETRIED:
        return RetryableError(f"{status} {words}", reason=f"status_{status}", delay=delay, throttled=status == 429)
    if status == 413 or (status == 400 and _IMAGE.search(message)):
        return ItemRefused("image_refused", words)
    if 300 <= status < 400:
        return FatalError(
            f"The server redirects to another address ({status}), and the key is not sent there. Set generate.endpoint to "
            f"that address. The sign-in page of a network also causes this."
        )
    if status == 404:
        return ModelGone(
            f"The server answers {quoted}. The model is retired or does not exist, or generate.endpoint is wrong. Set "
            f"generate.model to a model that doctor lists. To go on with a run that has replies of a retired model, set "
            f"generate.successor to the model that replaces it: both are kept apart."
        )
    return FatalError(
        f"The server refuses the request, {quoted}. Change what it names in the settings of generate, or set another "
        f"generate.model."
    )


def _account_error(status: int, said: str, quoted: str, *, waits: bool) -> FatalError | None:
    """The error for what says something about the account or the place, and nothing about a request; None for others.

    Args:
        status: HTTP status.
        said: the server's reasons and message.
        quoted: its words, for the user.
        waits: whether the server says when to try again: then it is an ordinary limit.
    """
    if status == 400 and _LOCATION.search(said) and "billing" not in said:
        return FatalError(
            f"The server answers {quoted}. Google does not serve the place that this machine's requests come from: generate "
            f"on a machine in a supported country, or set HTTPS_PROXY to a proxy there."
        )
    if status in (400, 402, 403) or (status == 429 and not waits):
        for words, remedy in _PROJECT:
            if words.search(said):
                return ProjectRefused(f"The server answers {quoted}. {remedy}")
    if status == 402:
        return ProjectRefused(
            f"The server answers {quoted}. It wants to be paid first: look at the project's billing at "
            f"https://ai.studio/projects and start again."
        )
    return None


def connection_error(error: BaseException) -> Exception:
    """The error for a request whose connection failed, from the root cause of a library's exception.

    Each of the three libraries wraps the operating system's error in its own way.
    """
    root = error
    while cause := root.__cause__ or root.__context__:
        root = cause
    if isinstance(root, ssl.SSLCertVerificationError):
        return FatalError(
            f"The certificate of the server is not trusted: {root.verify_message}. Nothing was sent. Either "
            f"generate.endpoint names the wrong server, or the connection is intercepted. If that is your site's own proxy "
            f"or server, set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to the file of its certificate."
        )
    # httpx and requests agree on these names, and each has a base of its own for all of them.
    name = type(error).__name__
    if name == "ConnectTimeout":
        return Unreachable("it does not accept the connection in time")
    if name.endswith("Timeout") or isinstance(root, TimeoutError):
        return RetryableError("no answer in time", reason="timeout")
    if isinstance(root, socket.gaierror):
        return Unreachable(f"its name does not resolve ({root.strerror})")
    if isinstance(root, OSError) and root.errno in _UNREACHABLE:
        return Unreachable(str(root.strerror))
    return RetryableError(f"the connection broke: {type(root).__name__}: {root}", reason="connection")


def not_a_reply(what: object) -> RetryableError:
    """The error for an answer with status 200 that the API would never give, as from a proxy or a sign-in page."""
    return RetryableError(
        f"not a reply of the API: {type(what).__name__ if isinstance(what, Exception) else what}", reason="not_json"
    )


def seconds(text: str | float | int) -> float | None:
    """A duration such as ``3s`` or ``3.5s``."""
    try:
        return float(str(text).removesuffix("s"))
    except ValueError:
        return None
