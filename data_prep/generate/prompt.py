"""The request about a product, and whether a reply keeps the rules; the same for single requests and batches."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

from data_prep.generate import cost
from data_prep.generate.clients.base import RawReply, Request, mime_type
from data_prep.generate.clients.errors import ItemRefused
from data_prep.generate.qa_parser import QAParseError, QAParser
from data_prep.generate.settings import GenerateSettings
from data_prep.images.decode import read_image_file
from data_prep.outcomes import Failed
from data_prep.records import Product, QAPair, Reply

PROMPT_FILE = Path(__file__).parent / "prompts" / "five_questions.md"
_MAX_IMAGE_BYTES = 15_000_000  # Gemini takes requests of 20 MB, and base64 adds a third
_MAX_FIELD, _MAX_VIOLATIONS = 300, 1500  # characters; the prompt stays within what `cost` expects of a request


@dataclass(frozen=True, slots=True)
class CheckedReply:
    """A parsed reply."""

    pairs: tuple[QAPair, ...]  # the usable ones
    violations: str | None  # which rules it breaks, in words for the model; None for five good pairs


def check_reply(reply: Reply, settings: GenerateSettings) -> CheckedReply:
    """Parse a reply and check it against the rules."""
    return _check(reply.text or "", reply.finish_reason, settings.require_category)


# Whoever stored a reply, the shard loop and the next request ask about it within moments; it is parsed once for all of them.
@functools.lru_cache(maxsize=1024)
def _check(text: str, finish_reason: str, require_category: bool) -> CheckedReply:
    try:
        parsed = QAParser(require_category=require_category).parse(text)
        pairs, violations = tuple(parsed.pairs), "; ".join(parsed.violations()) or None
    except QAParseError as error:
        pairs, violations = (), f"no JSON array of five objects was found ({error.reason})"
    if finish_reason == "MAX_TOKENS":
        violations = "the reply was too long and was cut off"
    return CheckedReply(pairs, violations)


def rule_violations(reply: Reply, settings: GenerateSettings) -> str | None:
    """Which rules a reply breaks, in words for the model; None for five good pairs."""
    return check_reply(reply, settings).violations


def make_request(item: Product, last: Reply | None, image_root: Path, settings: GenerateSettings) -> Request:
    """The request about a product; ``last`` is its previous reply, which broke the rules.

    Raises:
        ImageProblem: the image cannot be read.
    """
    image = read_image_file(image_root, item.image_path, _MAX_IMAGE_BYTES)
    return Request(prompt(item, rule_violations(last, settings) if last else None), image, mime_type(image))


def prompt(item: Product, violations: str | None = None) -> str:
    """The text of a request; ``violations`` of the previous reply are repeated to the model."""
    text = PROMPT_FILE.read_text(encoding="utf-8").format(
        name=_one_line(item.name),
        product_type=_one_line(item.product_type),
        color=_one_line(item.color) or "unknown",
        keywords=_one_line(", ".join(item.keywords)) or "none",
    )
    if violations:
        text += (
            f"\nYour last reply broke these rules: {violations[:_MAX_VIOLATIONS]}. Write five new pairs that keep to all of "
            f"them.\n"
        )
    return text


def _one_line(text: str) -> str:
    """A field of a listing, short and without line breaks, so that it cannot pass for instructions."""
    return " ".join(text.split())[:_MAX_FIELD]


def stored_reply(
    item: Product, raw: RawReply, settings: GenerateSettings, *, seconds: float, batch: bool = False
) -> Reply:
    """A reply as it is stored, with its cost."""
    tier = cost.billed_tier(settings, raw, batch=batch)
    return Reply(
        item_id=item.item_id,
        image_id=item.image_id,
        # Lone surrogates, which JSON's escapes can smuggle in, cannot be written as UTF-8.
        text=raw.text.encode("utf-8", "replace").decode() if raw.text else None,
        finish_reason=raw.finish_reason,
        model=settings.model,
        dollars=cost.billed(settings, raw, tier=tier),
        generator=settings.generator,
        seconds=round(seconds, 3),
        model_version=raw.model_version,
        model_status=raw.model_status,
        tier=tier,
        **dataclasses.asdict(raw.usage),
    )


def refusal(
    item: Product, error: ItemRefused, detail: str, settings: GenerateSettings, *, seconds: float, batch: bool = False
) -> Failed:
    """The outcome of a product that the model refused. A refusal is billed, so it is kept as a reply without text."""
    reply = None
    if error.reply and error.usage.input_tokens:
        raw = dataclasses.replace(error.reply, text="", finish_reason=error.reason)
        reply = stored_reply(item, raw, settings, seconds=seconds, batch=batch)
    return Failed(error.reason, detail, value=reply)
