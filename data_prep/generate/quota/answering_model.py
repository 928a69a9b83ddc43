"""Which model answers a run, whatever was asked for. Google routes the requests of a retired model to its successor. The digits are
the fingerprint of the settings that decide the replies::

ledger/5be1c0ffee12/answered-by/first            a folder: a task has taken it upon itself to write the next
ledger/5be1c0ffee12/answered-by/expected.json    {"model_version": "gemini-3.5-flash-lite"}
ledger/5be1c0ffee12/answered-by/other.json       another one answered, and the run was stopped
"""

from __future__ import annotations

import time
from pathlib import Path

from data_prep.files import read_json, write_json
from data_prep.generate.quota.allowance import claim
from data_prep.outcomes import UserError

_LOOK_SECONDS = 0.2


class AnsweringModel:
    """Which model version answers a run. The first one that is recorded is expected from then on, in all tasks.

    Args:
        folder: ``ledger/<fingerprint>/answered-by``, shared by all tasks.
        successor: another version that may answer.
    """

    def __init__(self, folder: Path, successor: str | None) -> None:
        self._folder, self._successor = folder, successor
        self._expected: str | None = None

    def check_start(self) -> None:
        """Look, before anything is sent, whether the run was stopped for another model, which is not accepted yet.

        Raises:
            UserError: it was.
        """
        if other := read_json(self._folder / "other.json"):
            self._compare(str(other["model_version"]))

    def check(self, version: str) -> None:
        """Compare the model version of a reply that has been recorded; one that the API does not state stops nothing.

        Raises:
            UserError: another one answered than before.
        """
        if version:
            self._compare(version)

    def _compare(self, version: str) -> None:
        expected = self._expected = self._expected or self._first(version)
        if version == expected or (self._successor and is_version_of(version, self._successor)):
            return
        write_json(self._folder / "other.json", {"model_version": version})
        raise UserError(
            f"{expected} answered this run so far, and now {version} answers: a retired model's requests are routed to its "
            f"successor, at that one's price. To go on, set generate.successor={version}: records, dataset card and report "
            f"keep both apart. For one model alone, use another --run-dir with generate.model={version}. Every reply that "
            f"was paid for is kept."
        )

    def _first(self, version: str) -> str:
        """The version that was recorded first; this one where there is none."""
        file = self._folder / "expected.json"
        if claim(self._folder / "first"):
            write_json(file, {"model_version": version})
            return version
        # Another task is writing it in this moment, or was killed in that moment.
        for _ in range(20):
            if found := read_json(file):
                return str(found["model_version"])
            time.sleep(_LOOK_SECONDS)
        write_json(file, {"model_version": version})
        return version


def expected_model(ledger: Path, fingerprint: str) -> str | None:
    """The model version that answered first under some settings; None before that, or where the API does not say."""
    found = read_json(ledger / fingerprint / "answered-by" / "expected.json")
    return str(found["model_version"]) if found else None


def is_version_of(version: str, model: str) -> bool:
    """Whether a version is of a model: gemini-3.6-flash-001 or gemini-3.6-flash-10-2026 of gemini-3.6-flash."""
    rest = version.removeprefix(model)
    return version.startswith(model) and all(part.isdigit() for part in rest.split("-")[1:]) and rest[:1] in ("", "-")
