"""Stage 4: parse, check, remove duplicates, split without leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from data_prep import curate
from data_prep.records import AtomicFile, Failed, ImageFacts, Ok, Product, Rejected, Reply, dumps, from_dict, read_jsonl
from jobs.fingerprint import read_json
from jobs.journal import Damage
from jobs.loop import outcome_of, store_records
from jobs.rundir import Step
from jobs.stages.base import Outcome, SingleStage, outputs_digest, store_digest


class Curate(SingleStage):
    """Writes 4_curate: the splits, what was dropped and why, statistics, the data set card."""

    name = "curate"

    def settings(self) -> dict[str, Any]:
        return self.config.curate.model_dump(mode="json")

    def inputs(self) -> dict[str, str]:
        return {
            "prepare": outputs_digest(read_json(self.run_dir.done_file(Step("prepare")))),
            "validate": store_digest(self.run_dir, "validate"),
            "generate": store_digest(self.run_dir, "generate"),
        }

    def execute(self, stopping: Callable[[], bool]) -> Outcome:
        return Outcome({})
