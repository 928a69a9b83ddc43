"""What is asked, and whether a reply keeps the rules; the same for single requests and batches."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import orjson

from data_prep.files import file_digest
from data_prep.generate import cost
from data_prep.generate.clients.base import RawReply, Request, mime_type
from data_prep.generate.clients.errors import ItemRefused
from data_prep.generate.qa_parser import QAParseError, QAParser
from data_prep.generate.settings import GenerateSettings, RequestSettings
from data_prep.images.decode import ImageProblem
from data_prep.images.locate import locator
from data_prep.outcomes import Failed, Ok, UserError
from data_prep.records import Product, QAPair, Reply

PROMPT_FILE = Path(__file__).parent / "prompts" / "five_questions.md"
# About no product: whether a key or a server answers at all. It costs less than a tenth of a cent.
TINY_REQUEST = Request(
    prompt='Reply with five objects whose question is "What color is the sky?", answer is "blue" and category is "easy".',
    image=b"",
    mime_type="",
    max_output_tokens=256,
)
_MAX_IMAGE_BYTES = 15_000_000  # Gemini takes requests of 20 MB, and base64 adds a third
_MAX_OUTPUT_TOKENS = 65_536  # of any Gemini 3 model
_SPELLING = {"grey": "gray", "greys": "gray", "coloured": "colored", "multicolour": "multicolor"}
_SEPARATORS = re.compile(r"[\s_/,-]+")
_FILLERS = {"and", "the", "with", "for", "of", "in", "a"}  # words that say nothing, in whatever field they stand
_MAX_FIELD, _MAX_VIOLATIONS = 300, 1500  # characters; the prompt stays within what `cost` expects of a request


class AskedAbout(Protocol):
    """What a request is about: a product, or the questions about one or several."""

    @property
    def item_id(self) -> str:
        """Its name, which replies carry."""

    @property
    def image_id(self) -> str:
        """The image that is shown; "" where none is."""


ItemT = TypeVar("ItemT", bound=AskedAbout)


class Prompter(ABC, Generic[ItemT]):
    """What is asked about an item, and whether a reply is of use. Who sends it, retries, counts and pays is the same for all."""

    settings: RequestSettings

    @abstractmethod
    def identity(self) -> Mapping[str, object]:
        """The settings that decide the replies; records made under others are never mixed in. Speed and limits do not count.

        Raises:
            UserError: the stand-in's answers cannot be read.
        """

    @abstractmethod
    def request(self, item: ItemT, replies: Sequence[Reply]) -> Request:
        """The next request about an item; ``replies`` are those that it has, all of which break the rules.

        Raises:
            ImageProblem: the image cannot be read.
        """

    @abstractmethod
    def outcome(self, item: ItemT, reply: Reply) -> Ok | Failed:
        """What a reply that was paid for is recorded as: one of no use is a failure that may be asked again."""

    @abstractmethod
    def violations(self, item: ItemT, reply: Reply) -> str | None:
        """Which rules a reply breaks; None for a good one. Another request follows while ``max_asks`` allows it."""

    def fingerprint(self) -> str:
        """A digest of `identity`."""
        return hashlib.sha256(orjson.dumps(self.identity(), option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def model_identity(settings: RequestSettings, answers: str = "") -> Mapping[str, object]:
    """What decides the replies to any prompt.

    Args:
        settings: how the model is asked.
        answers: the SHA-256 of the stand-in's answers, where it is known already.

    Raises:
        UserError: the stand-in's answers cannot be read.
    """
    if settings.stand_in is not None and not answers:
        path = settings.stand_in.answers
        try:
            answers = file_digest(path)
        except OSError as error:
            raise UserError(f"generate.stand_in.answers: cannot read {path}: {error.strerror}.") from error
    return {
        "generator": settings.generator.replace("-", "_"),
        "model": settings.model,
        "thinking": settings.sent_thinking,
        "media_resolution": settings.sent_resolution,
        "temperature": settings.temperature,
        "max_output_tokens": settings.max_output_tokens,
        "stand_in": answers[:12] or None,
    }


class FiveQuestions(Prompter[Product]):
    """Five questions about a product, with their answers.

    Args:
        settings: how to ask.
        image_root: folder of the images.
    """

    def __init__(self, settings: GenerateSettings, image_root: Path) -> None:
        self.settings: GenerateSettings = settings
        self._image_root = image_root

    def identity(self) -> Mapping[str, object]:
        return identity(self.settings)

    def request(self, item: Product, replies: Sequence[Reply]) -> Request:
        return make_request(item, replies, self._image_root, self.settings)

    def outcome(self, item: Product, reply: Reply) -> Ok | Failed:
        return outcome(reply, self.settings)

    def violations(self, item: Product, reply: Reply) -> str | None:
        return rule_violations(reply, self.settings)


def identity(settings: GenerateSettings, answers: str = "") -> dict[str, object]:
    """The settings that decide the questions; see `Prompter.identity`. Arguments as of `model_identity`."""
    return {
        **model_identity(settings, answers),
        "prompt": file_digest(PROMPT_FILE)[:12],
        "show_listing": settings.show_listing,
    }


@dataclass(frozen=True, slots=True)
class CheckedReply:
    """A parsed reply. It is usable if it has at least one valid pair, even where it breaks other rules."""

    pairs: tuple[QAPair, ...]  # the valid ones
    violations: str | None  # which rules it breaks, in words for the model; None for five good pairs
    problem: str  # why it is of no use: cut_off, eaten_by_thoughts, no_valid_pair, no_array, ...; "" if it is usable


def check_reply(reply: Reply, settings: GenerateSettings) -> CheckedReply:
    """Parse a reply and check it against the rules."""
    return _check(reply.text or "", reply.finish_reason, reply.thought_tokens > 0, settings.require_category)


# Whoever stored a reply, the shard loop and the next request ask about it within moments; it is parsed once for all of them.
@functools.lru_cache(maxsize=1024)
def _check(text: str, finish_reason: str, has_thoughts: bool, require_category: bool) -> CheckedReply:
    try:
        parsed = QAParser(require_category=require_category).parse(text)
        pairs, violations = tuple(parsed.pairs), "; ".join(parsed.violations()) or None
        problem = "" if pairs else "no_valid_pair"
    except QAParseError as error:
        pairs, violations = (), f"no JSON array of five objects was found ({error.reason})"
        problem = error.reason
    if finish_reason == "MAX_TOKENS":
        # Thoughts count inside max_output_tokens, so a model may think until nothing is left for the answer.
        eaten = has_thoughts and not text.strip()
        violations = "it had no text at all: answer at once" if eaten else "it was too long and was cut off: be brief"
        if not pairs:
            problem = "eaten_by_thoughts" if eaten else "cut_off"
    return CheckedReply(pairs, violations, problem)


def rule_violations(reply: Reply, settings: GenerateSettings) -> str | None:
    """Which rules a reply breaks, in words for the model; None for five good pairs."""
    return check_reply(reply, settings).violations


def outcome(reply: Reply, settings: GenerateSettings) -> Ok | Failed:
    """What a reply that was paid for is recorded as: one without a valid pair is a failure that may be asked again."""
    problem = check_reply(reply, settings).problem
    if not problem:
        return Ok(reply)
    detail = (
        f"{reply.output_tokens:,} output tokens, {reply.thought_tokens:,} of them thoughts: {(reply.text or '')[:100]}"
    )
    return Failed(problem, detail, retry=True, value=reply)


def validated_image(image_root: Path, path: str, image_id: str, sha256: str) -> bytes:
    """The bytes of an image file, which must be those that were validated; ``sha256`` "": whatever they are.

    Raises:
        ImageProblem: the image cannot be read, or is not the one that was validated.
    """
    image = locator(image_root).read(path, image_id, _MAX_IMAGE_BYTES)
    if sha256 and hashlib.sha256(image).hexdigest() != sha256:
        raise ImageProblem("image_changed", f"{path} changed after it was validated: launch again")
    return image


def make_request(item: Product, replies: Sequence[Reply], image_root: Path, settings: GenerateSettings) -> Request:
    """The next request about a product; ``replies`` are those that it has, all of which break the rules.

    Raises:
        ImageProblem: the image cannot be read, or is not the one that was validated.
    """
    image = validated_image(image_root, item.image_path, item.image_id, item.image_sha256)
    violations = rule_violations(replies[-1], settings) if replies else None
    return Request(prompt(item, settings, violations), image, mime_type(image), output_limit(replies, settings))


def output_limit(replies: Sequence[Reply], settings: RequestSettings) -> int:
    """``max_output_tokens`` of the next request. A reply that hit its limit would hit it again: each doubles the next one's."""
    doubled = sum(reply.finish_reason == "MAX_TOKENS" for reply in replies)
    return max(settings.max_output_tokens, min(settings.max_output_tokens * 2**doubled, _MAX_OUTPUT_TOKENS))


def prompt(item: Product, settings: GenerateSettings, violations: str | None = None) -> str:
    """The text of a request; ``violations`` of the previous reply are repeated to the model."""
    text = PROMPT_FILE.read_text(encoding="utf-8").format(listing=shown_listing(item, settings))
    if violations:
        text += (
            f"\nYour last reply broke these rules: {violations[:_MAX_VIOLATIONS]}. Write five new pairs that keep to all of "
            f"them.\n"
        )
    return text


def shown_listing(item: Product, settings: GenerateSettings) -> str:
    """What the prompt shows of the listing, as ``generate.show_listing`` says."""
    if settings.show_listing == "none":
        return ""
    witness = {word for value in item.witness for word in _words(value)} - _FILLERS
    fields = {"keywords": ", ".join(filter(None, (_without(keyword, witness) for keyword in item.keywords)))}
    if settings.show_listing == "all":
        fields = {"name": _without(item.name, witness), "type": _without(item.product_type, witness), **fields}
    lines = [f"\n- {name}: {_one_line(text)}" for name, text in fields.items() if text.strip()]
    if not lines:
        return ""
    return " The shop describes it so (context only; it may be wrong or not visible):" + "".join(lines)


@functools.lru_cache(maxsize=65_536)  # listings repeat their words, and a launch looks at the text of each product
def _words(text: str) -> frozenset[str]:
    """The words of a text as they are compared: in lower case, in American spelling, without a plural's s."""
    found = re.findall(r"[^\W\d_]+", text.casefold())
    return frozenset(_SPELLING.get(word, word.removesuffix("s") if len(word) > 3 else word) for word in found)


def _without(text: str, witness: set[str]) -> str:
    """A text without the words of the fields that a question's answer is later checked against."""
    kept = [word for word in _SEPARATORS.split(text) if witness.isdisjoint(_words(word))]
    return " ".join(kept)


def _one_line(text: str) -> str:
    """A field of a listing, short and without line breaks, so that it cannot pass for instructions."""
    return " ".join(text.split())[:_MAX_FIELD]


def stored_reply(
    item: AskedAbout, raw: RawReply, settings: RequestSettings, *, seconds: float, batch: bool = False
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
    item: AskedAbout, error: ItemRefused, detail: str, settings: RequestSettings, *, seconds: float, batch: bool = False
) -> Failed:
    """The outcome of a product that the model refused. A refusal is billed, so it is kept as a reply without text."""
    reply = None
    if error.reply and error.usage.input_tokens:
        raw = dataclasses.replace(error.reply, text="", finish_reason=error.reason)
        reply = stored_reply(item, raw, settings, seconds=seconds, batch=batch)
    return Failed(error.reason, detail, value=reply)
