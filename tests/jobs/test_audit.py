"""``launch.py audit`` on a real run: the page, several people's verdicts, what they say in report and card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import read_jsonl, write_jsonl
from data_prep.records import Example
from jobs.run.layout import RunDir
from tests.conftest import launch, launch_args, output, write_config


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, catalogue: Path) -> Path:
    """A run with curated splits."""
    folder = tmp_path_factory.mktemp("audited")
    config = write_config(folder / "c.yaml", catalogue, curate={"test_share": 0.4})
    done = launch(*launch_args(config, folder / "run", "--stages", "prepare,validate,generate,curate"))
    assert done.returncode == 0, output(done)
    return folder / "run"


def drawn(run_dir: Path, *options: str) -> tuple[str, list[str]]:
    """The digest of the sample that a new page is about, and its questions."""
    before = set((run_dir / "audit").glob("*.html"))
    done = launch("audit", run_dir, *options)
    assert done.returncode == 0, output(done)
    (page,) = set((run_dir / "audit").glob("*.html")) - before
    text = page.read_text()
    data: Mapping[str, Any] = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert "http" not in text.replace("http-equiv", ""), "the page must need no network"
    assert data["sample"] == page.stem
    assert all(data["images"][q["path"]].startswith("data:image/jpeg") for q in data["questions"])
    return page.stem, [q["id"] for q in data["questions"]]


def verdicts(path: Path, sample: str, person: str, said: Mapping[str, str]) -> Path:
    content = {question: {"verdict": verdict} for question, verdict in said.items()}
    path.write_text(json.dumps({"sample": sample, "person": person, "verdicts": content}))
    return path


def test_two_peoples_verdicts_are_read_and_reach_report_and_card(run_dir: Path, tmp_path: Path) -> None:
    sample, ids = drawn(run_dir, "--questions", "40")
    assert len(ids) == 40
    ada = verdicts(tmp_path / "ada.json", sample, "Ada", {q: "wrong" if i < 4 else "right" for i, q in enumerate(ids)})
    bob = verdicts(tmp_path / "bob.json", sample, "Bob", {q: "bad" if i < 2 else "right" for i, q in enumerate(ids)})
    done = launch("audit", run_dir, "--verdicts", ada, bob)
    assert done.returncode == 0, output(done)
    assert "40 of 40 questions judged (Ada 40, Bob 40)" in output(done)
    assert "Ada and Bob: kappa" in output(done) and "the same verdict on 36 of 40" in output(done)
    card = (run_dir / "4_curate/README.md").read_text()
    assert card.count("## Checked by people") == 1 and "40 of 40 drawn test questions" in card
    assert launch("report", run_dir).returncode == 0
    report = next(run_dir.glob("*_report"))
    figures = json.loads((report / "report.json").read_text())["truth"]
    assert figures["audit"]["people"] == {"Ada": 40, "Bob": 40}
    assert "Cohen's kappa" in (report / "index.html").read_text().replace("&#39;", "'")
    assert launch("audit", run_dir, "--verdicts", ada).returncode == 0  # one person's now: what is said is said anew
    card = (run_dir / "4_curate/README.md").read_text()
    assert card.count("## Checked by people") == 1 and "Bob" not in card


def test_verdicts_on_another_split_or_run_are_refused(run_dir: Path, tmp_path: Path) -> None:
    sample, ids = drawn(run_dir, "--questions", "12", "--seed", "5")
    foreign = verdicts(tmp_path / "x.json", "0123456789abcdef", "Ada", {ids[0]: "right"})
    assert "was not drawn in" in output(launch("audit", run_dir, "--verdicts", foreign))
    mine = verdicts(tmp_path / "a.json", sample, "Ada", {ids[0]: "right"})
    split = RunDir(run_dir).split("test")
    rows, before = list(read_jsonl(split, Example)), split.read_bytes()
    next(row for row in rows if row.id == ids[0]).answer = "mauve"
    write_jsonl(split, rows)
    try:
        done = launch("audit", run_dir, "--verdicts", mine)
        assert done.returncode == 2 and "The test split has changed since sample" in output(done)
    finally:
        split.write_bytes(before)
    assert launch("audit", run_dir, "--verdicts", mine).returncode == 0


def test_files_without_the_option_and_runs_without_questions_are_told_what_to_do(
    run_dir: Path, tmp_path: Path, catalogue: Path
) -> None:
    done = launch("audit", run_dir, tmp_path / "a.json")
    assert done.returncode == 2 and "write --verdicts before them" in output(done)
    config = write_config(tmp_path / "c.yaml", catalogue)
    assert launch(*launch_args(config, tmp_path / "run", "--stages", "prepare")).returncode == 0
    assert "Run stage curate first" in output(launch("audit", tmp_path / "run"))
