"""The outcome of a run, item by item, without the times, attempts and machines that differ between runs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.run.layout import RunDir, ShardStore
from jobs.shards.journal import ReadReport
from jobs.shards.store import read_records

# Differs between runs; everything else in a record must be equal.
MEASURED = {"seconds", "at"}


def stores(run: RunDir) -> Iterator[tuple[str, ShardStore]]:
    """The sharded stages of a run, by name; evaluate has one per model and variant."""
    yield "validate", run.store("validate")
    yield "generate", run.store("generate")
    for kind in ("seen", "blind"):
        yield f"verify {kind}", run.opinions(kind)
    folder = run.stage_folder("evaluate")
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        yield f"evaluate {child.name}", ShardStore(child)


def records(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Every item's outcome, by store and key: the record's value, or its reason."""
    found: dict[str, dict[str, Any]] = {}
    for name, store in stores(RunDir(run_dir)):
        outcomes = found.setdefault(name, {})
        for record in read_records(store, ReadReport()):
            value = {k: v for k, v in (record.value or {}).items() if k not in MEASURED}
            outcomes.setdefault(record.key, {"ok": record.ok, "reason": record.reason, "value": value})
    return found


def files(run_dir: Path) -> dict[str, str]:
    """SHA-256 of every file that must be identical byte for byte: the dataset and the adapters."""
    run = RunDir(run_dir)
    paths = [run.products, run.rejected("prepare"), run.rejected("curate")]
    paths += [run.split(name) for name in ("train", "val", "test")]
    paths += sorted(run.stage_folder("train").glob("*/adapter/adapter_model.safetensors"))
    paths += sorted(run.stage_folder("generate").glob("shards/*/dataset_*.csv"))
    return {str(p.relative_to(run_dir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()}


def metrics(run_dir: Path) -> dict[str, Any]:
    """The report's numbers: metrics, intervals, breakdowns and the dataset's statistics."""
    path = RunDir(run_dir).report / "report.json"
    if not path.is_file():
        return {}
    report = json.loads(path.read_text())
    return {name: _unmeasured(report[name]) for name in ("dataset", "models", "definitions")}


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _unmeasured(v) for k, v in value.items() if "second" not in k}
    return [_unmeasured(v) for v in value] if isinstance(value, list) else value


def repeated(run_dir: Path) -> int:
    """Number of successes recorded for items that already had one."""
    total = 0
    for _, store in stores(RunDir(run_dir)):
        counts = Counter(record.key for record in read_records(store, ReadReport()) if record.ok)
        total += sum(count - 1 for count in counts.values())
    return total


def lost(expected: Path, found: Path) -> list[str]:
    """Whatever a run lacks or has changed compared with the undisturbed one; empty if they are equal."""
    missing: list[str] = []
    before, after = records(expected), records(found)
    for name in sorted(before.keys() | after.keys()):
        first, second = before.get(name, {}), after.get(name, {})
        for key in sorted(first.keys() | second.keys()):
            if first.get(key) != second.get(key):
                missing.append(f"{name} {key}: {first.get(key)} → {second.get(key)}")
    digests, others = files(expected), files(found)
    missing += [n for n in sorted(digests.keys() | others.keys()) if digests.get(n) != others.get(n)]
    if metrics(expected) != metrics(found):
        missing.append("the report's metrics")
    return missing
