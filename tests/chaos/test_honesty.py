"""Whatever was skipped, capped, failed or approximated is stated by the command's last lines, by status and by the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_prep.demo.catalogue import render
from jobs.run.layout import RunDir
from tests.conftest import launch, launch_args, output, write_config


@pytest.fixture(scope="module")
def imperfect(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run in which something went wrong in every stage, and the command's output."""
    folder = tmp_path_factory.mktemp("imperfect")
    catalogue = folder / "catalogue"
    render(catalogue, products=60, seed=4)
    for number, image in enumerate(sorted((catalogue / "images").rglob("*.jpg"))):
        if number % 12 == 0:
            image.write_bytes(b"<html>404</html>")
        elif number % 12 == 1:
            image.write_bytes(image.read_bytes()[:300])
    facts = catalogue / "facts.jsonl"
    stand_in = {"answers": str(facts), "faults": {"safety": 0.2}}
    config = write_config(
        folder / "c.yaml",
        catalogue,
        prepare={"max_items": 50},
        generate={"stand_in": stand_in, "max_tries": 1},
        evaluate={"shards": 2, "bertscore_model": "nobody/no-such-model"},
    )
    done = launch(*launch_args(config, folder / "run"))
    assert done.returncode == 0, output(done)
    return folder / "run", done.stdout


PROMISES = {
    "stand-in": r"the stand-in server replayed them",
    "cap": r"prepare: \d+ listings were left out: beyond prepare.max_items \(\d+\)",
    "unreadable images": r"validate: \d+ of 50 items failed: (?=[^.]*the file is not an image \(\d+\))[^.]*the image file is cut off \(\d+\)",
    "failed items": r"generate: \d+ of \d+ items failed: ",
    "missing metric": r"no BERTScore.*nobody/no-such-model",
}


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow
@pytest.mark.parametrize("promise", PROMISES)
def test_it_is_said_at_the_end_of_the_command_by_status_and_by_the_report(
    imperfect: tuple[Path, str], promise: str
) -> None:
    run_dir, said = imperfect
    pattern = PROMISES[promise]
    assert re.search(pattern, words(said[said.index("Report:") :])), said
    assert re.search(pattern, words(launch("status", run_dir).stdout))
    shown = json.loads(launch("status", run_dir, "--json").stdout)
    assert re.search(pattern, words(" ".join(w for step in shown["steps"] for w in step["warnings"])))
    run = RunDir(run_dir)
    warnings = json.loads((run.report / "report.json").read_text())["warnings"]
    assert any(re.search(pattern, words(warning)) for warning in warnings)
    page = words((run.report / "index.html").read_text())
    assert re.search(pattern, page[page.index("<body") :])
