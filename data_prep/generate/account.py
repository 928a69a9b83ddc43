"""Can a key generate? Looks up the models that it may use, and sends one tiny request as the run would.

The errors of `data_prep.generate.clients.errors` quote the server and say what to do; here is only what a run never asks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_prep.generate import cost, models
from data_prep.generate.clients.base import client_class
from data_prep.generate.clients.errors import (
    DailyQuotaExhausted,
    ItemRefused,
    KeyRejected,
    RetryableError,
    Unreachable,
    classify,
    connection_error,
)
from data_prep.generate.clients.openai_compatible import base_url
from data_prep.generate.prompt import TINY_REQUEST
from data_prep.generate.settings import RequestSettings
from data_prep.generate.waiting import with_deadline
from data_prep.outcomes import UserError, unknown_name

GOOGLE = "https://generativelanguage.googleapis.com"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a key can do. ``ok`` is None where that could not be found out."""

    ok: bool | None
    detail: str
    advice: str = ""


def check_key(settings: RequestSettings, key: str) -> Finding:
    """Try one key.

    Args:
        settings: of generation, with the model and the API version that the run uses.
        key: the key itself, or "" for a server that asks for none.
    """
    try:
        known = list_models(settings, key)
        reply = _tiny_generation(settings, key)
    except KeyRejected as error:
        return Finding(
            False, f"the server answers {error}", "Make a new key at https://aistudio.google.com/apikey, and set it."
        )
    except Unreachable as error:
        advice = "Look at the network; on a cluster, give generate a partition that has internet."
        return Finding(None, f"not tried, no connection from this machine: {error}", advice)
    except DailyQuotaExhausted as error:
        return Finding(
            None, f"accepted, but {error}", "Start again after midnight Pacific time, or use another project."
        )
    except RetryableError as error:
        return Finding(None, f"the server answers {error}", "Start again in some minutes.")
    except UserError as error:  # what it says is what to do
        advice = _successor(settings) if re.search(r"\b404\b|model", str(error)) else ""
        return Finding(False, str(error), advice)
    detail = f"accepted; {settings.model} answers"
    if reply and reply != settings.model:
        return Finding(
            None, f"{detail} as {reply}: another model", _successor(settings) or f"Set generate.model={reply}."
        )
    if known and settings.model.removeprefix("models/") not in known:
        detail += f", though the server does not list it ({unknown_name(settings.model, known, 'model')})"
    return Finding(True, detail)


def list_models(settings: RequestSettings, key: str) -> list[str]:
    """The models that the server offers this key; empty where it does not tell.

    Raises:
        GeneratorError, UserError: as of a client.
    """
    import httpx

    if settings.library == "openai_compatible":
        url, headers = (
            f"{base_url(settings.endpoint or GOOGLE)}/models",
            {"authorization": f"Bearer {key}"} if key else {},
        )
    else:
        url = f"{(settings.endpoint or GOOGLE).rstrip('/')}/{settings.api_version}/models?pageSize=1000"
        headers = {"x-goog-api-key": key}
    try:
        reply = httpx.get(url, headers=headers, timeout=settings.timeout)
        body = reply.json() if "json" in reply.headers.get("content-type", "") else {}
    except httpx.InvalidURL as error:
        raise UserError(f"generate.endpoint is no address: {error}. Set it to https://...") from error
    except httpx.HTTPError as error:
        raise connection_error(error) from error
    except ValueError:
        body = {}
    if reply.status_code == 404:  # a server of one's own need not list anything
        return []
    if not reply.is_success:
        found = body.get("error") if isinstance(body, dict) else None
        told = found if isinstance(found, dict) else {}
        raise classify(reply.status_code, str(told.get("message") or reply.reason_phrase), told.get("details") or [])
    entries = (body.get("models") or body.get("data") or []) if isinstance(body, dict) else []
    names = [str(entry.get("name") or entry.get("id") or "") for entry in entries if isinstance(entry, dict)]
    return sorted(name.removeprefix("models/") for name in names if name)


def _tiny_generation(settings: RequestSettings, key: str) -> str:
    """Send one request without an image; the version of the model that answered, or ""."""
    client = client_class(settings.generator)(settings, key, settings.endpoint)
    try:
        return with_deadline(lambda: client.generate(TINY_REQUEST), settings.timeout + 1).model_version
    except ItemRefused:  # it answered, if not with a text
        return ""


def _successor(settings: RequestSettings) -> str:
    """The model to use instead of one that is retired, and its price."""
    card = models.card(settings.model)
    if card is None or card.successor is None:
        return ""
    price = cost.price(settings.model_copy(update={"model": card.successor}))
    return f"Set generate.model={card.successor} ({price or 'price unknown'})."
