"""Records know what they were made from: what changed is done again, and nothing else; what was paid for only with consent."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_prep.stand_in import StandIn, StandInOptions
from jobs.run.layout import RunDir
from jobs.shards.journal import ReadReport, journal_files
from jobs.shards.store import read_records
from tests.conftest import launch, launch_args, output, write_config

pytestmark = pytest.mark.xdist_group("pipeline")  # one worker makes the finished run, once

OTHER_MODEL = (
    "--set",
    "generate.model=gemini-3.1-flash-lite",
    "--set",
    "generate.successor=gemini-3.1-flash-lite",
)


@dataclass
class Paid:
    """A run of the data stages whose generator is a server that counts."""

    folder: Path
    server: StandIn
    config: Path

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder / "run")

    @property
    def images(self) -> Path:
        return self.folder / "abo/images/small"

    def launch(self, *more: str, code: int = 0) -> str:
        """Launch the data stages; what was printed."""
        done = launch(*launch_args(self.config, self.run.path, "--stages", "prepare,validate,generate,curate", *more))
        assert done.returncode == code, output(done)
        return output(done)

    def asked(self) -> int:
        return len(self.server.entries)

    def dataset(self) -> dict[str, bytes]:
        return {name: self.run.split(name).read_bytes() for name in ("train", "val", "test")}

    def products(self) -> list[dict[str, Any]]:
        return rows(self.run.products)

    def swap(self) -> tuple[Path, Path]:
        """Exchange the image files of two products under their paths."""
        first, second = (self.images / product["image_path"] for product in self.products()[:2])
        one, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other)
        second.write_bytes(one)
        return first, second

    def status(self) -> dict[str, dict[str, Any]]:
        return statuses(self.run.path)


def rows(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def statuses(run: Path) -> dict[str, dict[str, Any]]:
    done = launch("status", run, "--json")
    assert done.returncode == 0, output(done)
    return {step["step"]: step for step in json.loads(done.stdout)["steps"]}


def recorded(run: RunDir, stage: str) -> int:
    return sum(1 for _ in read_records(run.store(stage), ReadReport()))


@pytest.fixture
def paid(tmp_path: Path, catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paid]:
    yield from begun(tmp_path, catalogue, monkeypatch)


def begun(
    folder: Path,
    catalogue: Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: dict[str, float] | None = None,
    **sections: Any,
) -> Iterator[Paid]:
    monkeypatch.setenv("GEMINI_API_KEY", "test-key")
    shutil.copytree(catalogue, folder / "abo")
    with StandIn(folder / "abo/facts.jsonl", StandInOptions(faults=faults or {})) as server:
        generate = {"endpoint": server.url, **sections.pop("generate", {})}
        config = write_config(folder / "c.yaml", folder / "abo", generate=generate, **sections)
        made = Paid(folder, server, config)
        made.launch()
        yield made


def test_an_image_that_was_only_touched_is_looked_at_again_and_nothing_else(paid: Paid) -> None:
    asked, before = paid.asked(), paid.dataset()
    for product in paid.products()[:3]:
        os.utime(paid.images / product["image_path"], (1, 1))
    said = paid.launch()
    assert "validate: 3 images changed since they were looked at: done again" in said
    assert "generate: done already" in said and "curate: done already" in said
    assert paid.asked() == asked and paid.dataset() == before
    assert recorded(paid.run, "validate") == 40 + 3 + sum(
        record.ok is False for record in read_records(paid.run.store("validate"), ReadReport())
    )
    assert "validate: done already" in paid.launch()


def test_images_that_were_exchanged_are_asked_about_again_with_consent_alone(paid: Paid) -> None:
    asked, before = paid.asked(), paid.dataset()
    changed = paid.swap()
    said = paid.launch(code=2)
    assert "2 items were paid for ($0.00), but what was paid for does not count any more: 2 products were asked" in said
    assert "To pay for them again for about $0.00, at most $0.0" in said and "--redo" in said and "delete" not in said
    assert paid.asked() == asked and paid.dataset() == before
    found = paid.status()
    assert (found["generate"]["state"], found["generate"]["done"], found["generate"]["remaining"]) == (
        "outdated",
        38,
        2,
    )
    assert found["curate"]["state"] == "outdated"
    paid.launch("--redo")
    assert paid.asked() == asked + 2
    shas = {
        row["image_path"]: row["image_sha256"]
        for name in ("train", "val", "test")
        for row in rows(paid.run.split(name))
    }
    for path in changed:
        now = hashlib.sha256(path.read_bytes()).hexdigest()
        assert shas.get(str(path.relative_to(paid.images)), now) == now
    paid.swap()
    assert "generate" in paid.launch(), "what it is set back to was paid for: no consent is needed"
    assert paid.asked() == asked + 2 and paid.dataset() == before
    assert recorded(paid.run, "generate") == asked + 2, "nothing is deleted"


def test_what_the_prompt_shows_of_a_listing_counts_and_nothing_else_of_it(paid: Paid) -> None:
    asked = paid.asked()
    item = paid.products()[0]["item_id"]
    edit_listing(paid.folder / "abo", item, "model_name", "Another")
    edit_listing(paid.folder / "abo", item, "bullet_point", "It says more now")
    paid.launch()
    edit_listing(paid.folder / "abo", item, "item_keywords", "entirely other keywords")
    assert "1 products were asked about with another image or listing" in paid.launch(code=2)
    assert paid.asked() == asked
    paid.launch("--redo")
    assert paid.asked() == asked + 1


def edit_listing(abo: Path, item: str, field: str, text: str) -> None:
    for path in sorted(abo.glob("listings/metadata/*.json.gz")):
        listings = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for listing in listings:
            if listing.get("item_id") == item:
                listing[field] = [{"language_tag": "en_US", "value": text}]
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(listing) + "\n" for listing in listings)


def test_another_model_is_asked_with_consent_alone_and_both_models_replies_are_kept(paid: Paid) -> None:
    asked, before = paid.asked(), paid.dataset()
    records = recorded(paid.run, "generate")
    said = paid.launch(*OTHER_MODEL, code=2)
    assert "40 items were made under other settings (" in said
    assert "model: 'gemini-3.5-flash-lite' → 'gemini-3.1-flash-lite'" in said and "--redo" in said
    assert paid.asked() == asked
    alone = launch(*launch_args(paid.config, paid.run.path, "--stages", "curate", *OTHER_MODEL))
    assert alone.returncode == 1 and "these do not count: 40 items were made under other settings" in output(alone)
    assert "gemini-3.5-flash-lite" in (paid.run.dataset / "README.md").read_text()
    assert paid.dataset() == before, "replies of one model are never another's"
    spent = paid.status()["generate"]["dollars"]
    paid.launch(*OTHER_MODEL, "--redo")
    assert paid.asked() == 2 * asked
    assert paid.status()["generate"]["dollars"] > 1.5 * spent > 0, "what the first replies cost was spent all the same"
    assert "gemini-3.1-flash-lite" in (paid.run.dataset / "README.md").read_text()
    paid.launch()
    assert paid.asked() == 2 * asked and paid.dataset() == before
    assert recorded(paid.run, "generate") == 2 * records


def test_consent_is_for_one_launch(paid: Paid) -> None:
    paid.launch(*OTHER_MODEL, "--redo")
    asked = paid.asked()
    paid.launch("--set", "generate.model=gemini-3.6-flash", code=2)
    assert paid.asked() == asked


def test_a_lost_record_file_is_asked_about_again_and_curation_follows(paid: Paid) -> None:
    asked = paid.asked()
    (path,) = journal_files(paid.run.store("generate").shard(1))
    lost = len(path.read_bytes().splitlines())
    path.unlink()
    said = paid.launch()
    assert paid.asked() == asked + lost
    assert "curate: input generate" in said and "curate: done already" not in said


def test_after_fewer_shards_money_tables_and_agreement_count_all_folders(paid: Paid) -> None:
    before = paid.status()["generate"]
    items = {row[0] for row in tables(paid.run, 2)}
    paid.launch("--shards", "1")
    after = paid.status()["generate"]
    assert (after["dollars"], after["input_tokens"]) == (before["dollars"], before["input_tokens"]) != (0.0, 0)
    assert [path.name for path in paid.run.path.glob("3_generate/shards/*/dataset_*.csv")] == ["dataset_0.csv"]
    assert {row[0] for row in tables(paid.run, 1)} == items and len(items) == 40
    paid.launch("--shards", "3")
    again = launch("self-consistency", paid.run.path, "--products", "40")
    assert again.returncode == 0, output(again)
    assert json.loads(paid.run.self_consistency.read_text())["products"] == 40


def tables(run: RunDir, shards: int) -> list[list[str]]:
    found = []
    for shard in range(shards):
        with run.store("generate").dataset_csv(shard).open(newline="") as file:
            found += list(csv.reader(file))[1:]
    return found


def test_a_raised_max_asks_asks_again_about_products_that_kept_a_poor_reply(
    tmp_path: Path, catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for paid in begun(tmp_path, catalogue, monkeypatch, {"four_pairs": 1.0}, generate={"max_asks": 1}):
        asked = paid.asked()
        assert (paid.status()["generate"]["done"], paid.status()["generate"]["failed"]) == (40, 0)
        paid.launch("--set", "generate.max_asks=2")
        assert paid.asked() == 2 * asked
        assert "generate: done already" in paid.launch("--set", "generate.max_asks=2")


def test_status_counts_present_items_alone_and_says_what_is_outdated(paid: Paid) -> None:
    fewer = launch(*launch_args(paid.config, paid.run.path, "--stages", "prepare", "--set", "prepare.max_items=10"))
    assert fewer.returncode == 0, output(fewer)
    found = paid.status()
    assert [found["validate"][name] for name in ("items", "done", "remaining", "state")] == [10, 10, 0, "outdated"]
    assert {found[step]["state"] for step in ("generate", "curate")} == {"outdated"}
    paid.launch("--set", "prepare.max_items=10")
    found = paid.status()
    for step in ("validate", "generate"):
        assert [found[step][name] for name in ("items", "remaining", "state")] == [10, 0, "done"], step
    assert found["generate"]["done"] == 10 and found["curate"]["state"] == "done"
    changed = launch(*launch_args(paid.config, paid.run.path, "--stages", "prepare", "--set", "curate.seed=5"))
    assert changed.returncode == 0, output(changed)
    assert "seed" in paid.status()["curate"]["outdated"]


def test_an_older_run_is_refused_with_a_sentence(paid: Paid) -> None:
    record = json.loads(paid.run.run_file.read_text())
    del record["format"]
    paid.run.run_file.write_text(json.dumps(record))
    for said in (paid.launch(code=2), output(launch("status", paid.run.path))):
        assert "made by another version of this program (format 1" in said and "Traceback" not in said


@pytest.fixture
def copied(finished: tuple[Path, Path], tmp_path: Path) -> tuple[RunDir, Path]:
    """A finished run of one's own, and its configuration."""
    shutil.copytree(finished[0], tmp_path / "run")
    return RunDir(tmp_path / "run"), finished[1]


def answered(run: RunDir) -> Counter[str]:
    stores = [run.predictions("blip", variant) for variant in ("base", "lora")]
    return Counter(record.key for store in stores for record in read_records(store, ReadReport()))


def relaunch(copied: tuple[RunDir, Path], *more: str, code: int = 0) -> str:
    done = launch(*launch_args(copied[1], copied[0].path, *more))
    assert done.returncode == code, output(done)
    return output(done)


def test_the_report_scores_exactly_the_questions_of_the_split_that_is_evaluated(copied: tuple[RunDir, Path]) -> None:
    run = copied[0]
    val = rows(run.split("val"))
    relaunch(copied, "--stages", "evaluate,report", "--set", "evaluate.split=val")
    report = json.loads((run.report / "report.json").read_text())["models"]["blip"]
    assert (report["questions"], report["unshared"]) == (len(val), 0) and len(val) > 0
    for variant in ("base", "lora"):
        with run.predictions_table("blip", variant).open(newline="") as file:
            assert sorted((row["image_id"], row["question"]) for row in csv.DictReader(file)) == sorted(
                (row["image_id"], row["question"]) for row in val
            )


def test_truths_are_those_of_the_present_split_and_answers_do_not_depend_on_them(
    copied: tuple[RunDir, Path],
) -> None:
    run = copied[0]
    test, asked = rows(run.split("test")), answered(run)
    common = Counter(row["answer"] for row in test if row["answer"] not in ("yes", "no")).most_common(1)[0][0]
    relaunch(copied, "--stages", "curate,evaluate,report", "--set", f"curate.spelling={{{common}: otherwise}}")
    truths = {row["answer"] for row in rows(run.split("test"))}
    assert "otherwise" in truths and common not in truths
    assert answered(run) == asked, "an answer does not depend on how the truth is spelled"
    for variant in ("base", "lora"):
        with run.predictions_table("blip", variant).open(newline="") as file:
            assert {row["ground_truth"] for row in csv.DictReader(file)} == truths
    report = json.loads((run.report / "report.json").read_text())["models"]["blip"]
    assert report["questions"] == len(test)
    confused = {c["truth"] for v in report["variants"].values() for c in v["confusions"]}
    assert common not in confused


def test_the_report_states_what_the_adapter_was_trained_with(copied: tuple[RunDir, Path]) -> None:
    run = copied[0]
    relaunch(copied, "--stages", "report", "--set", "train.learning_rate=0.5", "--set", "models.blip.lora.r=3")
    report = json.loads((run.report / "report.json").read_text())
    stated = report["parameters"]["blip"]
    assert (stated["training"]["learning_rate"], stated["lora"]["r"]) == (0.001, 16)
    assert report["run"]["made_with"]["train:blip"]["train"]["learning_rate"] == 0.001
    assert "config" not in report["run"]
    assert statuses(run.path)["train:blip"]["state"] == "outdated"


def test_a_trained_adapter_is_trained_again_with_consent_alone_and_kept(copied: tuple[RunDir, Path]) -> None:
    run = copied[0]
    before = (run.adapter("blip") / "adapter_model.safetensors").read_bytes()
    said = relaunch(copied, "--set", "train.learning_rate=0.002", code=2)
    assert "train.learning_rate: 0.001 → 0.002" in said and "--redo" in said and "delete" not in said
    said = relaunch(copied, "--set", "train.learning_rate=0.002", "--redo")
    assert "evaluate:blip" in said and "done again" in said
    assert (run.adapter("blip") / "adapter_model.safetensors").read_bytes() != before
    (kept,) = run.stage_folder("train").glob("blip-*/adapter/adapter_model.safetensors")
    assert kept.read_bytes() == before
