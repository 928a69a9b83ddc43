"""What the stand-in knows: its options, its answers, how often each image was asked about, its quota, and its log."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_prep.outcomes import UserError
from data_prep.stand_in import faults as fault_kinds
from data_prep.stand_in.messages import INPUT_TOKENS, OUTPUT_TOKENS, ROUTED_TO, Asked, Manner, Tokens, drawn_tokens
from data_prep.stand_in.opinions import Opinions
from data_prep.verify.second_opinion import asked_in

_SHOWN = ("question", "answer", "category")  # of a fact; the rest is what a generator does not say


@dataclass(frozen=True)
class StandInOptions:
    """How the stand-in behaves.

    Raises:
        UserError: a fault is unknown.
    """

    latency: float = 0.0
    """Seconds before each reply."""
    faults: Mapping[str, float] = field(default_factory=dict)
    """Share of requests that go wrong, by kind of `data_prep.stand_in.faults.KINDS`."""
    seed: int = 0
    """Another seed, other requests that go wrong."""
    retry_delay: float = 1.0
    """Seconds that a 429 asks to wait."""
    requests_per_minute: int | None = None
    """Enforced over any 60 seconds with 429. None: no limit. 0: the model is not available to this project."""
    tokens_per_minute: int | None = None
    """Enforced likewise; a request counts with all its tokens, in and out, when it arrives."""
    requests_per_day: int | None = None
    """Enforced over the server's lifetime, with a daily quota's 429."""
    keys: Sequence[str] | None = None
    """Valid API keys; None: any."""
    models: Sequence[str] | None = None
    """Known models; None: any."""
    retired: Sequence[str] = ()
    """Models that are answered with 404, in Google's words."""
    api_versions: Sequence[str] = ("v1", "v1beta")
    """Versions of the API that have the models."""
    thoughts: float | None = None
    """Mean of the thought tokens; tokens are then counted as Gemini 3 does, and drawn by the seed. None: each reply takes 900 in
    and 150 out."""
    outage_seconds: float = 0.0
    """503 for so long after the first request."""
    opinion_error: float = 0.0
    """Share of second opinions that are wrong."""
    opinion_copies: float = 0.0
    """Share of these that repeat a wrong answer of the generator; see `data_prep.stand_in.opinions`."""
    batch_seconds: float = 0.0
    """Seconds until a batch is answered."""
    batches_at_once: int | None = None
    """Batches under way at most, 429 for more. None: no limit."""
    batch_faults: Mapping[str, float] = field(default_factory=dict)
    """Share of batches that go wrong, by kind of `data_prep.stand_in.faults.BATCH_KINDS`."""

    def __post_init__(self) -> None:
        unknown = set(self.faults) - set(fault_kinds.KINDS) | set(self.batch_faults) - set(fault_kinds.BATCH_KINDS)
        if unknown:
            raise UserError(
                f"stand-in: unknown faults {sorted(unknown)}. Known: "
                f"{', '.join(fault_kinds.KINDS)}; of batches: {', '.join(fault_kinds.BATCH_KINDS)}."
            )


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request about an image is to be answered."""

    ask: int  # how often the image was asked about, this request included
    fault: str  # a kind of fault, unknown_image, or ""
    text: str | None = None  # None: no candidate
    finish_reason: str = "STOP"
    manner: Manner = field(default_factory=Manner)
    quiz: str = ""  # a digest of the questions, where second opinions are asked for


class State:
    """Shared by all requests; every access comes under the lock.

    Args:
        answers: JSONL file with image_sha256 and qas.
        options: how to behave.
        log: file for one line a request.

    Raises:
        UserError: the answers cannot be read.
    """

    def __init__(self, answers: Path, options: StandInOptions, log: Path | None) -> None:
        self.options = options
        self.lock = threading.RLock()
        self.entries: list[dict[str, Any]] = []  # the log
        facts = _read_answers(answers)
        self._opinions = Opinions(facts, options.opinion_error, options.opinion_copies, options.seed)
        self._answers = {
            image: [{name: pair[name] for name in _SHOWN if name in pair} for pair in pairs]
            for image, pairs in facts.items()
        }
        self._asked: Counter[str] = Counter()
        self._recent: deque[float] = deque()  # monotonic, of requests of the last minute
        self._today = 0
        self._first_at: float | None = None  # monotonic; of the first request
        self._log = log.open("ab", buffering=0) if log else None

    def close(self) -> None:
        """Close the log."""
        if self._log:
            self._log.close()

    def note(
        self, arrived: float, outcome: str, key: str, *, image: str = "", answer: Answer | None = None, batch: str = ""
    ) -> None:
        """Write one request into the log: when it arrived, about what, and how it is about to be answered."""
        entry = {"at": arrived, "image": image, "ask": answer.ask if answer else 0, "outcome": outcome, "key": key[-4:]}
        if answer and answer.fault not in fault_kinds.TRANSPORT and outcome != "unknown_image":
            tokens = answer.manner.tokens
            entry |= {"input_tokens": tokens.input, "output_tokens": tokens.output}
        if answer and answer.quiz:
            entry["quiz"] = answer.quiz
        if batch:
            entry["batch"] = batch
        entry["answered"] = time.time()
        with self.lock:
            self.entries.append(entry)
            if self._log:
                self._log.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def draw(self, image: str) -> tuple[int, str]:
        """Count the next request about an image ("": one without), and choose its fault: (how often it was asked, fault)."""
        with self.lock:
            self._asked[image] += 1
            ask = self._asked[image]
            self._first_at = self._first_at or time.monotonic()
            out = time.monotonic() - self._first_at < self.options.outage_seconds
        return ask, "status_503" if out else fault_kinds.choose(self.options.faults, self.options.seed, image, ask)

    def answer(self, image: str, asked: Asked) -> Answer:
        """Choose the answer to the next request about an image, given by the SHA-256 of its bytes ("": questions without one)."""
        questions = asked_in(asked.prompt)
        quiz = hashlib.sha256(f"{image} {questions}".encode()).hexdigest()[:16] if questions else ""
        ask, fault = self.draw(quiz or image)
        if fault in fault_kinds.TRANSPORT:
            return Answer(ask, fault, quiz=quiz)
        pairs = self._opinions.reply(image, questions) if quiz else self._answers.get(image)
        if pairs is None:
            return Answer(ask, "unknown_image", quiz=quiz)
        text = None if fault == "safety" else fault_kinds.spoil(fault, pairs)
        tokens = self._tokens(fault, text or "", asked, f"{quiz or image}:{ask}")
        return dataclasses.replace(_limited(ask, fault, text, asked, tokens), quiz=quiz)

    def _tokens(self, fault: str, text: str, asked: Asked, request: str) -> Tokens:
        """What the reply takes, before the limit of its output."""
        options = self.options
        tokens = Tokens() if text else Tokens(text_out=0)
        if options.thoughts is not None:
            tokens = drawn_tokens(asked, text, options.thoughts, f"{options.seed}:{request}")
        if fault in ("thoughts", "thought_parts") and not tokens.thoughts:
            tokens = dataclasses.replace(tokens, thoughts=200)
        return tokens

    def admit(self) -> str:
        """Count a request against the quota: "", or which quota is used up."""
        options, now = self.options, time.monotonic()
        with self.lock:
            while self._recent and now - self._recent[0] >= 60:
                self._recent.popleft()
            if options.requests_per_day is not None and self._today >= options.requests_per_day:
                return "day"
            if options.requests_per_minute is not None and len(self._recent) >= options.requests_per_minute:
                return "minute"
            tokens = (len(self._recent) + 1) * (INPUT_TOKENS + OUTPUT_TOKENS)
            if options.tokens_per_minute is not None and tokens > options.tokens_per_minute:
                return "tokens"
            self._recent.append(now)
            self._today += 1
            return ""


def _limited(ask: int, fault: str, text: str | None, asked: Asked, tokens: Tokens) -> Answer:
    """The answer, cut off where thoughts and text together pass the request's limit."""
    limit, finish = asked.max_output_tokens, "MAX_TOKENS" if fault == "max_tokens" else "STOP"
    if fault == "eaten" or (text and tokens.thoughts >= limit):
        text, finish, tokens = "", "MAX_TOKENS", dataclasses.replace(tokens, thoughts=limit, text_out=0)
    elif text and tokens.output > limit:
        left = limit - tokens.thoughts
        text, finish = text[: len(text) * left // tokens.text_out], "MAX_TOKENS"
        tokens = dataclasses.replace(tokens, text_out=left)
    version = {"routed": ROUTED_TO, "no_version": ""}.get(fault)
    stage = "DEPRECATED" if fault == "deprecated" else ""
    return Answer(ask, fault, text, finish, Manner(tokens, version, stage, fault == "thought_parts"))


def _read_answers(path: Path) -> dict[str, list[dict[str, object]]]:
    """By SHA-256 of an image, its pairs, as `data_prep.stand_in.opinions` describes them."""
    try:
        with path.open("rb") as lines:
            rows = [orjson.loads(line) for line in lines]
        return {row["image_sha256"]: row["qas"] for row in rows}
    except OSError as error:
        raise UserError(f"stand-in: cannot read its answers {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"stand-in: {path} must have lines with image_sha256 and qas ({error}).") from error
