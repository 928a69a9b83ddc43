"""A small shop for the tests of generation: images (any bytes will do), products, and the stand-in's answers."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data_prep.generate.settings import GenerateSettings
from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import Product, Reply

KEY = "AIzaSyTest-Secret-Key-0123456789-abcd42"
WORDS = ["red", "round", "wood", "four", "striped"]


@dataclass
class Shop:
    """Products with images on disk and answers to ask for."""

    root: Path
    products: list[Product]
    answers: Path
    quota: Path

    @property
    def ledger(self) -> Path:
        return self.quota.parent / "ledger"

    def sha(self, product: Product) -> str:
        return hashlib.sha256((self.root / product.image_path).read_bytes()).hexdigest()


@dataclass
class Outcomes:
    """Collects what is recorded."""

    ok: dict[str, list[Reply]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, Failed] = field(default_factory=dict)
    paid: dict[str, list[Reply]] = field(default_factory=lambda: defaultdict(list))  # replies of no use
    durable: list[bool] = field(default_factory=list)

    def todos(
        self, products: Iterable[Product], previous: Outcomes | None = None, made_from: Callable[[Product], str] = repr
    ) -> Iterator[Todo[Product]]:
        """The products as the shard loop hands them over; ``previous`` has the replies of an earlier attempt."""
        for product in products:
            prior = [*previous.ok[product.item_id], *previous.paid[product.item_id]] if previous else ()
            record = functools.partial(self.record, product.item_id)
            yield Todo(product, record, prior_replies=tuple(prior), made_from=made_from(product))

    def record(self, key: str, outcome: Ok | Failed, *, durable: bool = False) -> None:
        if isinstance(outcome, Ok):
            self.ok[key].append(outcome.value)
            self.durable.append(durable)
        elif outcome.value is not None and outcome.retry:
            self.paid[key].append(outcome.value)
        else:
            self.failed[key] = outcome


def make_shop(folder: Path, count: int) -> Shop:
    products, lines = [], []
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        image = b"\xff\xd8\xff\xe0 image " + str(i).encode()
        (folder / "images" / f"{i}.jpg").write_bytes(image)
        products.append(Product(f"B{i:04d}", f"I{i:04d}", f"{i}.jpg", f"mug {i}", "MUG", "red", ["mug"]))
        qas = [{"question": f"What is the {w} thing {i}?", "answer": w, "category": "easy"} for w in WORDS]
        lines.append(json.dumps({"image_sha256": hashlib.sha256(image).hexdigest(), "qas": qas}))
    answers = folder / "answers.jsonl"
    answers.write_text("\n".join(lines) + "\n")
    return Shop(folder / "images", products, answers, folder / "quota")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return make_shop(tmp_path / "shop", 12)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    return KEY


def settings_for(url: str, **changes: Any) -> GenerateSettings:
    return GenerateSettings.model_validate(
        {
            "generator": "google_genai",
            "endpoint": url,
            "concurrency": 4,
            "timeout": 5.0,
            "min_usable": 0,  # most tests are about something else
            "max_output_tokens": 512,  # so that caps of tenths of a cent are worth some requests
            "prices": {"input": 0.10, "output": 0.40, "read_on": "2025-06-01"},  # round ones, whatever the default is
            **changes,
        }
    )
