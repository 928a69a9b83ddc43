"""Two views of one folder, like those of two nodes on a network file system: each sees the other's writes late, in any order.

A view is an ordinary folder; a thread periodically copies changes in both directions. So for a while, a view can lack files that
exist, hold truncated files (cut anywhere in a record) or old markers, and see files replaced while they are read. If both
views change a file, either version may win. Locks do not reach the other view.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

State = tuple[int, int]  # size in bytes, modification time in nanoseconds


class LaggingViews:
    """``with LaggingViews(folder, lag=0.5) as (first, second): ...``; the views agree on exit.

    Args:
        folder: where the views ``a`` and ``b`` are created.
        lag: seconds between exchanges.
        leave: files that are not exchanged, by path within the view.
        seed: for the order in which changes arrive.
    """

    def __init__(
        self, folder: Path, lag: float, leave: Callable[[Path], bool] = lambda path: False, seed: int = 0
    ) -> None:
        self.views = (folder / "a", folder / "b")
        self.lag, self.leave = lag, leave
        self.carried = 0
        self._rng = random.Random(seed)
        self._known: dict[Path, State] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        for view in self.views:
            view.mkdir(parents=True)

    def __enter__(self) -> LaggingViews:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.exchange()

    def _run(self) -> None:
        while not self._stop.wait(self.lag):
            self.exchange()

    def exchange(self) -> None:
        """Copy every change to the other view, in both directions."""
        changes = [
            (here, there, path) for here, there in (self.views, self.views[::-1]) for path in self._changed(here)
        ]
        self._rng.shuffle(changes)
        for here, there, path in changes:
            with suppress(FileNotFoundError):  # it was a temporary file
                self._carry(here / path, there / path)

    def _changed(self, view: Path) -> list[Path]:
        found = []
        for path in view.rglob("*"):
            with suppress(FileNotFoundError):
                if path.is_file() and self._known.get(path) != _state(path) and not self.leave(path.relative_to(view)):
                    found.append(path.relative_to(view))
        gone = [path for path in self._known if path.is_relative_to(view) and not path.exists()]
        return found + [path.relative_to(view) for path in gone]

    def _carry(self, source: Path, target: Path) -> None:
        if not source.exists():
            self._known.pop(source, None)
            self._known.pop(target, None)
            target.unlink(missing_ok=True)
            return
        state = _state(source)
        data = source.read_bytes()[: state[0]]
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".nfs-{target.name}")
        part.write_bytes(data)
        part.replace(target)
        self._known[source], self._known[target] = state, _state(target)
        self.carried += 1


def _state(path: Path) -> State:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
