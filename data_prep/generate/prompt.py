"""What is asked about a product, and whether a reply keeps to the rules. The same one by one and in batches."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.generate import cost
from data_prep.generate.clients.base import RawReply, Request, mime_type
from data_prep.generate.qa_parser import QAParseError, QAParser
from data_prep.generate.settings import GenerateSettings
from data_prep.images.decode import read_image_file
from data_prep.records import Product, Reply

PROMPT_FILE = Path(__file__).parent / "prompts" / "five_questions.md"
_MAX_IMAGE_BYTES = 15_000_000  # a request with an inline image may have 20 MB, and base64 adds a third


def make_request(item: Product, last: dict[str, Any] | None, image_root: Path, settings: GenerateSettings) -> Request:
    """The request about a product; ``last`` is the stored reply before, which broke the rules.

    Raises:
        ImageProblem: the image cannot be read.
    """
    image = read_image_file(image_root, item.image_path, _MAX_IMAGE_BYTES)
    wrong = verdict(last, settings) if last else None
    return Request(prompt(item, wrong), image, mime_type(image))


def prompt(item: Product, wrong: str | None = None) -> str:
    """What is asked about one product; ``wrong`` says what was wrong with the reply before."""
    text = PROMPT_FILE.read_text(encoding="utf-8").format(
        name=_one_line(item.name),
        product_type=_one_line(item.product_type),
        color=_one_line(item.color) or "unknown",
        keywords=_one_line(", ".join(item.keywords)) or "none",
    )
    if wrong:
        text += f"\nYour last reply broke these rules: {wrong[:1500]}. Write five new pairs that keep to all of them.\n"
    return text


def _one_line(text: str) -> str:
    """A field of a listing, short and without line breaks, so that it cannot pass for instructions of its own."""
    return " ".join(text.split())[:300]


def stored_reply(
    item: Product, raw: RawReply, settings: GenerateSettings, *, seconds: float, batch: bool = False
) -> dict[str, Any]:
    """A reply as it is stored, with what it cost."""
    paid = 0.0 if settings.stand_in else cost.dollars(settings.prices, raw.input_tokens, raw.output_tokens)
    if batch and settings.batch:
        paid *= settings.batch.price
    reply = Reply(
        item_id=item.item_id,
        image_id=item.image_id,
        text=raw.text.encode("utf-8", "replace").decode() if raw.text else None,
        finish_reason=raw.finish_reason,
        model=raw.model,
        input_tokens=raw.input_tokens,
        output_tokens=raw.output_tokens,
        dollars=paid,
        generator=settings.generator + (" batch" if batch else ""),
        seconds=round(seconds, 3),
    )
    return asdict(reply)


def verdict(value: dict[str, Any], settings: GenerateSettings) -> str | None:
    """Why a stored reply breaks the rules, in words that can be put to the model; None for five good pairs."""
    if value.get("finish_reason") == "MAX_TOKENS":
        return "the reply was too long and was cut off"
    try:
        parsed = QAParser(require_category=settings.require_category).parse(value.get("text") or "")
    except QAParseError as error:
        return f"no JSON array of five objects was found ({error.reason})"
    return "; ".join(parsed.complaints()) or None
