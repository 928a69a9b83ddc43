"""Measures how long it takes to find what is pending in an evaluation, compared with merely reading and parsing the same files.

    python -m benchmarks.resume [--records 738510] [--shards 64] [--rounds 3] [--out FILE]

All of ABO has 147,702 products with five questions each. The real journal writes their answers. Then each case runs in a process
of its own, which measures its time and peak memory:

- "all done": `pending_shards`, as ``launch.py`` calls it before it starts anything. All shards have markers, so keys and
  every byte of the records are checked against them;
- "killed": the same without markers, then what a task does to resume one of the shards;
- "other shards": what a task does after the number of shards changed, so that it must read every record;
- "floor": orjson reads and parses the questions and the answers, line by line.

The limit is 5 seconds and 500 MB for each case. The seconds do not include starting Python.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from benchmarks.measure import Times, compare, report
from data_prep.files import read_jsonl, write_jsonl
from data_prep.outcomes import Ok, Todo
from data_prep.records import Example, Prediction
from jobs.run.layout import ShardStore
from jobs.shards.digest import text_digest
from jobs.shards.journal import ReadReport
from jobs.shards.loop import pending_shards, run_shard, shard_made
from jobs.shards.progress import ShardSource, load_progress
from jobs.shards.store import freeze_shards, shard_of

QUESTIONS_PER_IMAGE = 5
CASES = ("all done", "killed", "other shards", "floor")


def examples(count: int) -> Iterator[Example]:
    """As many questions as ABO has."""
    for number in range(count):
        item = number // QUESTIONS_PER_IMAGE
        question = f"What is the {number % 13}th detail of the product in this image?"
        yield Example(
            id=f"{number:016x}",
            item_id=f"B{item:09d}",
            image_id=f"{item:08x}L",
            image_path=f"{item % 256:02x}/{item:08x}.jpg",
            question=question,
            answer="red",
            category="easy",
            question_type="color",
            product_type="HOME_BED_AND_BATH",
            image_sha256=f"{item:064x}",
        )


class Answers(ShardSource[Example]):
    """An evaluation like the stage's, without a model."""

    value_type = Prediction

    def __init__(self, folder: Path, only: Sequence[Example] | None = None) -> None:
        self._folder, self._only = folder, only
        self.store = ShardStore(folder / "blip-base")

    def stores(self) -> dict[str, ShardStore]:
        return {"base": self.store}

    def settings(self, variant: str) -> dict[str, str]:
        return {"model": "blip"}

    def items(self) -> Iterable[Example]:
        return read_jsonl(self._folder / "test.jsonl", Example) if self._only is None else self._only

    def key(self, item: Example) -> str:
        return item.id

    def made_from(self, item: Example) -> str:
        return text_digest(item.question, item.image_sha256)

    def group(self, item: Example) -> str:
        return item.image_id

    def process(self, todos: Iterator[Todo[Example]]) -> None:
        for todo in todos:
            e = todo.item
            todo.record(Ok(Prediction(e.id, e.item_id, e.image_id, "red", 0.731234, 0.021345)))


def make_answers(folder: Path, records: int, shards: int) -> None:
    """Write all questions and an answer to each."""
    write_jsonl(folder / "test.jsonl", examples(records))
    answers = Answers(folder)
    # Group the questions by shard first: filtering them for every shard would take one pass per shard.
    parts: dict[int, list[Example]] = {shard: [] for shard in range(shards)}
    for example in answers.items():
        parts[shard_of(example.image_id, shards)].append(example)
    freeze_shards(answers.store, shards)
    for shard, part in parts.items():
        run_shard(Answers(folder, part), shard, shards, lambda: False)


def do(case: str, folder: Path, shards: int) -> None:
    """Run one case."""
    if case == "floor":
        for path in [folder / "test.jsonl", *sorted((folder / "blip-base/shards").rglob("records.*"))]:
            with path.open("rb") as lines:
                for line in lines:
                    orjson.loads(line)
        return
    answers = Answers(folder)
    if case == "all done":
        assert pending_shards(answers, shards) == []
    elif case == "killed":
        assert pending_shards(answers, shards) == list(range(shards))
        assert load_progress(answers, "base", shard_made(answers, 0, shards), ReadReport(), 0).done
    else:
        freeze_shards(answers.store, shards // 2)
        made = shard_made(answers, 0, shards // 2)
        progress = load_progress(answers, "base", made, ReadReport(), 0)
        assert made and all(map(progress.settled, made))


def in_a_process(case: str, folder: Path, shards: int) -> tuple[float, float]:
    """Run a case in a process of its own; return its seconds and peak MB."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.resume",
        "--case",
        case,
        "--folder",
        str(folder),
        "--shards",
        str(shards),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[1])
    seconds, megabytes = done.stdout.split()
    return float(seconds), float(megabytes)


def measure(records: int, shards: int, rounds: int) -> dict[str, Any]:
    """Run all cases, alternating."""
    times = {case: Times() for case in CASES}
    peak = dict.fromkeys(CASES, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_answers(folder, records, shards)
        markers = {path: path.read_bytes() for path in folder.rglob("done.json")}
        shards_file = folder / "blip-base/shards.json"
        frozen = shards_file.read_bytes()
        for number in range(rounds):
            for case in CASES if number % 2 == 0 else CASES[::-1]:
                for path, content in markers.items():
                    path.write_bytes(content)
                    if case == "killed":
                        path.unlink()
                shards_file.write_bytes(frozen)
                seconds, megabytes = in_a_process(case, folder, shards)
                times[case].seconds.append(seconds)
                peak[case] = max(peak[case], megabytes)
    figures: dict[str, Any] = {"records": records, "shards": shards}
    for case in CASES[:-1]:
        figures[case] = compare(times, case, "floor", work=records, unit="records")
        figures[f"{case}: seconds"] = times[case].median
        figures[f"{case}: peak megabytes"] = peak[case]
    figures["bar"] = "5 s, 500 MB"
    return figures


def main() -> None:
    """Measure, print and write the results; or run a single case, in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=738_510)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is None:
        report("resume", measure(arguments.records, arguments.shards, arguments.rounds), arguments.out)
        return
    began = time.perf_counter()
    do(arguments.case, arguments.folder, arguments.shards)
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(seconds, peak / 1024)


if __name__ == "__main__":
    main()
