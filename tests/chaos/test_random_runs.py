"""Random sequences of what people and machines do to a run; after each launch its records, splits and money agree with a model.

The shop is a few products of a rendered catalog, whose images and listings change under their names. The model is the set of
(product, image, listing, generator model) that a reply on the disk is about, and the server's own log of what was paid for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from data_prep.demo.catalogue import render, write_metadata
from data_prep.generate.batch_state import batches_spent
from data_prep.generate.quota.spending import requests_spent
from data_prep.stand_in import StandIn, StandInOptions
from jobs.run.layout import RunDir
from tests.conftest import ROOT, environment, launch, launch_args, launch_command, output, write_config

PRODUCTS, IMAGES = 10, 40  # that the shop may have, and files that their images may show
MODELS = ("gemini-3.5-flash-lite", "gemini-3.1-flash-lite")
STAGES = "prepare,validate,generate,curate"
LAUNCH_SECONDS = 3.0  # about what an undisturbed launch takes: kills come within it
REFUSED = 2  # exit code of a launch that asks for consent
IN_FLIGHT = 4  # requests under way at once
BATCH = {"requests": 4, "at_least": 2, "poll_seconds": 0.05}

products = st.integers(0, PRODUCTS - 1)
_launches = st.tuples(st.just("launch"), st.booleans())
EVENTS = st.one_of(  # names of methods of `Run`, with arguments; each line is as likely as another, and Hypothesis begins with the first alone
    st.tuples(st.just("change_an_image"), products, st.integers(0, IMAGES - 1)),
    st.tuples(st.just("exchange_two_images"), products, products),
    st.tuples(st.just("change_a_listing"), products, st.integers(0, 2)),
    st.tuples(st.just("add_or_remove_a_product"), products),
    st.tuples(st.just("ask_another_model"), st.sampled_from(MODELS)),
    st.tuples(st.just("take_other_shards"), st.integers(1, 3)),
    st.tuples(st.just("spell_otherwise"), st.sampled_from(["ruby", "rouge"])),
    st.tuples(st.just("ask_in_batches_or_one_by_one"), st.sampled_from(["standard", "batch"])),
    st.tuples(st.just("lose_a_record_file"), st.sampled_from(["validate", "generate"]), st.integers(0, 99)),
    _launches,
    _launches,
    _launches,
    _launches,
    st.tuples(st.just("launch_and_kill"), st.booleans(), st.floats(0.3, LAUNCH_SECONDS), st.booleans()),
)


class Shop:
    """The catalog on disk: which image file and which listing each product has now."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._pool = folder / "shop", folder / "pool"
        render(self._pool, products=IMAGES, seed=5)
        self.facts = [json.loads(line) for line in (self._pool / "facts.jsonl").read_text().splitlines()]
        self.image = {number: number for number in range(PRODUCTS // 2)}  # product → file of the pool
        self.words = dict.fromkeys(self.image, 0)  # product → version of its listing
        self.write()

    @property
    def answers(self) -> Path:
        """What the server answers, by the SHA-256 of an image."""
        return self._pool / "facts.jsonl"

    def sha(self, number: int) -> str:
        """Of the image that a product shows."""
        return str(self.facts[self.image[number]]["image_sha256"])

    def write(self) -> None:
        """Put listings and images on the disk; a file whose content stays is not touched."""
        listings, index = [], []
        for number, shown in sorted(self.image.items()):
            path = f"{number:02d}/{number:02d}.jpg"
            file = self.folder / "images/small" / path
            data = (self._pool / "images/small" / self.facts[shown]["path"]).read_bytes()
            if not file.exists() or file.read_bytes() != data:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
            index.append((f"IMAGE{number:02d}", 256, 256, path))
            listings.append(_listing(number, self.words[number]))
        write_metadata(self.folder, listings, index)


def _listing(number: int, version: int) -> dict[str, Any]:
    def text(words: str) -> list[dict[str, str]]:
        return [{"language_tag": "en_US", "value": words}]

    return {
        "item_id": f"ITEM{number:02d}",
        "item_name": text(f"Thing {number}, edition {version}"),
        "product_type": [{"value": "THING"}],
        "item_keywords": text(f"thing edition {version}"),
        "main_image_id": f"IMAGE{number:02d}",
    }


class Run(RuleBasedStateMachine):
    """A run, what is done to it, and what is known about it from outside."""

    seen: ClassVar[Counter[str]] = Counter()  # what happened in all sequences

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="random-run-"))
        self.shop = Shop(self.folder)
        self.server = StandIn(self.shop.answers, StandInOptions(latency=0.02))
        self.server.__enter__()
        self.run = RunDir(self.folder / "run")
        self.config = write_config(
            self.folder / "c.yaml",
            self.shop.folder,
            validate={"shards": 1},
            generate={
                "endpoint": self.server.url,
                "shards": 1,
                "concurrency": IN_FLIGHT,
                "min_usable": 0,
                "batch": BATCH,
            },
        )
        self.model, self.shards, self.spelling, self.tier = MODELS[0], 2, "ruby", "standard"
        self.kills = 0
        self.lost, self.lost_dollars = 0, 0.0  # replies in record files that were lost
        self.digests: dict[tuple[int, str, int], str] = {}  # (product, image, listing) → digest in its records

    def teardown(self) -> None:
        self.server.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    # One rule for all, as Hypothesis would leave some of several out of a sequence: launches, say.
    @rule(event=EVENTS)
    def go_on(self, event: tuple[Any, ...]) -> None:
        name, *arguments = event
        getattr(self, name)(*arguments)
        self.seen["steps"] += 1

    # What happens to the data

    def change_an_image(self, number: int, shown: int) -> None:
        if number in self.shop.image and shown not in self.shop.image.values():
            self.shop.image[number] = shown
            self._write()

    def exchange_two_images(self, one: int, other: int) -> None:
        if one != other and {one, other} <= self.shop.image.keys():
            self.shop.image[one], self.shop.image[other] = self.shop.image[other], self.shop.image[one]
            self._write()

    def change_a_listing(self, number: int, version: int) -> None:
        if number in self.shop.words:
            self.shop.words[number] = version
            self._write()

    def add_or_remove_a_product(self, number: int) -> None:
        if number in self.shop.image and len(self.shop.image) > 3:
            del self.shop.image[number], self.shop.words[number]
        elif number not in self.shop.image:
            free = set(range(IMAGES)) - set(self.shop.image.values())
            self.shop.image[number], self.shop.words[number] = min(free), 0
        self._write()

    def _write(self) -> None:
        self.shop.write()

    # What happens to the settings

    def ask_another_model(self, model: str) -> None:
        self.model = model

    def take_other_shards(self, shards: int) -> None:
        self.shards = shards

    def spell_otherwise(self, spelling: str) -> None:
        self.spelling = spelling

    def ask_in_batches_or_one_by_one(self, tier: str) -> None:
        self.tier = tier

    # What happens to the run's own files

    def lose_a_record_file(self, stage: str, which: int) -> None:
        files = sorted(self.run.store(stage).folder.glob("shards/*/records.*.jsonl"))
        if files:
            path = files[which % len(files)]
            if stage == "generate":
                lost = [orjson.loads(line) for line in path.read_bytes().splitlines() if line.endswith(b"}")]
                self.lost += len(lost)
                self.lost_dollars += sum(record["value"]["dollars"] for record in lost)
            path.unlink()

    # Launches

    def launch(self, consent: bool) -> None:
        known, asked = self._answered(), len(self.server.entries)
        new = {number for number in self.shop.image if self._combination(number) not in known}
        unpaid = {number for number in new if not any(item == number for item, _, _ in known)}
        done = launch(*self._arguments(consent), GEMINI_API_KEY="test-key")
        if "in batches that were handed in under other settings" in output(done):
            assert done.returncode == REFUSED and self.kills and len(self.server.entries) == asked
            self.seen["kept for a batch"] += 1
            return
        if new - unpaid and not consent:
            assert done.returncode == REFUSED and "--redo" in output(done), output(done)
            assert len(self.server.entries) == asked, "nothing is asked before the user agreed"
            self.seen["refused"] += 1
            return
        assert done.returncode == 0, output(done)
        self.seen["launched"] += 1
        self.seen["asked"] += len(new)
        about = Counter(entry["image"] for entry in self.server.entries[asked:] if entry["image"])
        assert about == Counter(self.shop.sha(number) for number in new), output(done)
        self._check(output(done))

    def launch_and_kill(self, consent: bool, after: float, everything: bool) -> None:
        process = subprocess.Popen(
            launch_command(*self._arguments(consent)),
            cwd=ROOT,
            env=environment(GEMINI_API_KEY="test-key"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(after)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL) if everything else process.kill()
            self.kills += 1
            self.seen["killed"] += 1
        process.wait()
        while self._processes():  # tasks of a killed launch end by themselves
            time.sleep(0.05)
        time.sleep(0.2)  # the server's last replies are logged

    def _processes(self) -> bool:
        """Whether a process of this run lives."""
        run = str(self.run.path).encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if run in path.read_bytes():
                    return True
        return False

    def _arguments(self, consent: bool) -> list[str | Path]:
        overrides = [
            f"generate.model={self.model}",
            f"generate.successor={self.model}",
            f"curate.spelling={{crimson: {self.spelling}}}",
            f"generate.tier={self.tier}",
        ]
        sets = [word for override in overrides for word in ("--set", override)]
        more = ["--redo"] if consent else []
        return [
            *launch_args(self.config, self.run.path, "--stages", STAGES, "--shards", str(self.shards), *sets, *more)
        ]

    # What must hold

    def _combination(self, number: int) -> tuple[int, str, str]:
        """A product with the content that a request about it shows, and the model."""
        digest = self.digests.get((number, self.shop.sha(number), self.shop.words[number]), "not seen")
        return number, digest, self.model

    def _records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All lines of generate's records, by the model that their file's name leads to; read as any tool would."""
        for path in self.run.store("generate").folder.glob("shards/*/records.*.jsonl"):
            settings = self.run.store("generate").settings(path.name.split(".")[-2])
            model = orjson.loads(settings.read_bytes())["model"]
            for line in path.read_bytes().splitlines():
                if line.endswith(b"}"):  # else torn by a kill
                    yield model, orjson.loads(line)

    def _answered(self) -> set[tuple[int, str, str]]:
        return {(int(r["key"].removeprefix("ITEM")), r["made"], model) for model, r in self._records() if r["ok"]}

    def _check(self, said: str) -> None:
        """After a launch that ended well."""
        shown = {f"ITEM{number:02d}": number for number in self.shop.image}
        self._learn_digests()
        answered = self._answered()
        assert {self._combination(number) for number in shown.values()} <= answered, said
        self._check_dataset(shown)
        self._check_status(len(shown))

    def _learn_digests(self) -> None:
        """Equal content has one digest, other content another."""
        digests: dict[str, set[str]] = {}
        for model, record in self._records():
            if model == self.model:
                digests.setdefault(record["key"], set()).add(record["made"])
        for number in self.shop.image:
            content = (number, self.shop.sha(number), self.shop.words[number])
            others = {digest for known, digest in self.digests.items() if known[0] == number and known != content}
            if content not in self.digests:
                (self.digests[content],) = digests[f"ITEM{number:02d}"] - others
            assert self.digests[content] not in others

    def _check_dataset(self, shown: dict[str, int]) -> None:
        rows = {name: _rows(self.run.split(name)) for name in ("train", "val", "test")}
        rejected = {row["item_id"] for row in _rows(self.run.rejected("curate"))}
        kept = {row["item_id"] for part in rows.values() for row in part}
        assert kept <= shown.keys() and shown.keys() - kept <= rejected
        for name, part in rows.items():
            for row in part:
                facts = self.shop.facts[self.shop.image[shown[row["item_id"]]]]
                truths = {
                    pair["question"]: self.spelling if pair["answer"] == "crimson" else pair["answer"]
                    for pair in facts["qas"]
                }
                assert truths[row["question"]] == row["answer"], "the answer belongs to the image that is there now"
                assert row["image_sha256"] == facts["image_sha256"]
                assert _side(row["image_id"]) == name

    def _check_status(self, items: int) -> None:
        status = launch("status", self.run.path, "--json")
        steps = {step["step"]: step for step in json.loads(status.stdout)["steps"]}
        for name in ("validate", "generate"):
            found = {key: steps[name][key] for key in ("items", "done", "failed", "remaining", "state")}
            assert found == {"items": items, "done": items, "failed": 0, "remaining": 0, "state": "done"}, name
        assert steps["curate"]["state"] == "done"

    @invariant()
    def every_reply_that_was_paid_for_is_on_disk_unless_a_kill_or_a_lost_file_took_it(self) -> None:
        paid = sum(entry["outcome"] == "ok" for entry in self.server.entries)
        stored = sum(1 for _ in self._records()) + self.lost
        assert stored <= paid, "nothing is invented"
        assert paid - stored <= (IN_FLIGHT + BATCH["requests"]) * self.kills  # a batch waits in the ledger

    @invariant()
    def nothing_is_paid_twice_but_what_was_under_way_at_a_kill_or_lost(self) -> None:
        known = Counter((record["key"], record["made"], model) for model, record in self._records())
        assert sum(count - 1 for count in known.values()) <= IN_FLIGHT * self.kills

    @invariant()
    def the_ledger_knows_of_every_dollar(self) -> None:
        spent = requests_spent(self.run.ledger) + batches_spent(self.run.batches)
        stored = sum(record["value"]["dollars"] for _, record in self._records()) + self.lost_dollars
        assert spent.paid + spent.reserved >= stored - 1e-9
        if not self.kills:
            assert spent.paid == pytest.approx(stored, abs=1e-9)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def _side(image_id: str) -> str:
    """The documented split of an image, with seed 0."""
    place = int.from_bytes(hashlib.sha256(f"0:{image_id}".encode()).digest()[:8], "big") / 2**64
    return "test" if place < 0.2 else "val" if place < 0.3 else "train"


def _try(sequences: int, steps: int, seed: int) -> None:
    chosen = settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # a failing sequence takes minutes; shrinking it would take hours
        suppress_health_check=list(HealthCheck),
    )
    Run.seen.clear()
    run_state_machine_as_test(hypothesis.seed(seed)(Run), settings=chosen)
    print(f"{sequences} sequences of at most {steps} steps: {dict(Run.seen)}")
    assert all(Run.seen[event] for event in ("launched", "refused", "asked", "killed")), (
        "the sequences do what they should"
    )


def test_a_run_agrees_with_its_model_after_whatever_happened_to_it() -> None:
    _try(sequences=4, steps=14, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_a_run_agrees_with_its_model_through_thousands_of_steps() -> None:
    _try(sequences=60, steps=40, seed=2)
