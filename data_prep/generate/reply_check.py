"""What follows for a run from a reply that has been recorded: that it goes on, or stops before it pays for more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_prep.generate.quota.answering_model import AnsweringModel
from data_prep.generate.quota.breaker import Permit, UsableReplies
from data_prep.generate.settings import RequestSettings
from data_prep.outcomes import Failed, Ok
from data_prep.records import Reply


class ReplyCheck:
    """What a run may conclude from a reply that has been recorded: that all are of no use, or by another model.

    Args:
        settings: how to ask.
        fingerprint: of the settings that decide the replies: under others all is counted anew.
        ledger: shared by all tasks of the run.
        cancelled: ends a wait when it becomes true.

    Raises:
        UserError: it was concluded before, and the settings are the same.
    """

    def __init__(
        self, settings: RequestSettings, fingerprint: str, ledger: Path, cancelled: Callable[[], bool]
    ) -> None:
        folder = ledger / fingerprint
        # A successor is another model, so its first replies are looked at like the first model's.
        first = folder / "-".join(filter(None, ["first-replies", (settings.successor or "").replace("/", "_")]))
        self.breaker = UsableReplies(first, settings.min_usable, 2 * settings.timeout, cancelled)
        self._model = AnsweringModel(folder / "answered-by", settings.successor)
        self._model.check_start()
        self._said: set[str] = set()

    def check(self, recorded: Ok | Failed, permit: Permit | None) -> None:
        """Look at the outcome of a request.

        Raises:
            UserError: the run is to stop.
        """
        reply: Reply | None = recorded.value
        if reply is None:  # it was refused before it cost anything
            self.breaker.give_back(permit)
            return
        if reply.model_status and not reply.model_status.startswith("STABLE") and reply.model_status not in self._said:
            self._said.add(reply.model_status)
            print(f"The API says of {reply.model_version or reply.model}: {reply.model_status}", flush=True)
        self.breaker.judge(permit, recorded.reason if isinstance(recorded, Failed) else "", reply.dollars)
        self._model.check(reply.model_version)
