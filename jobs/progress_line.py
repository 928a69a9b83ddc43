"""How far long work is, in one line; printed now and then where the output is no terminal, so that a log file shows as much.

::

    train:blip: step 420 of 1,000, loss 0.231, 2.4/s, 4 min left
"""

from __future__ import annotations

import time

from rich.console import Console


def progress_text(done: int, total: int, unit: str = "steps", **figures: float | None) -> str:
    """How far work is.

    Args:
        done, total: counted in ``unit``.
        unit: such as items, steps.
        figures: ``loss``, ``validation`` (share of exact answers), ``per_second``, ``seconds_left``; None: unknown.
    """
    place = f"step {done:,} of {total:,}" if unit == "steps" else f"{done:,} of {total:,} {unit}"
    forms = {"loss": "loss {:.3f}", "validation": "validation {:.3f}", "per_second": "{:.1f}/s"}
    parts = [form.format(value) for name, form in forms.items() if (value := figures.get(name)) is not None]
    left = figures.get("seconds_left")
    return ", ".join([place, *parts, *([] if left is None else [f"{duration(left)} left"])])


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min, 5.2 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


class ProgressLine:
    """Prints how far some work is, at most every 15 seconds.

    Args:
        console: takes the lines.
        phase: what is being done; begins each line.
    """

    EVERY = 15.0  # seconds

    def __init__(self, console: Console, phase: str) -> None:
        self.console, self.phase = console, phase
        self.began = self.said = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for a line."""
        return time.monotonic() - self.said >= self.EVERY

    def say(self, text: str) -> None:
        """Print a line."""
        self.said = time.monotonic()
        self.console.print(f"{self.phase}: {text}", markup=False)

    def __call__(self, step: int, steps: int, loss: float | None = None) -> None:
        """Say how far it is, if it is time to or the last step; the time left from that since the beginning."""
        if step < steps and not self.due():
            return
        seconds = time.monotonic() - self.began
        if step < steps:
            self.say(progress_text(step, steps, loss=loss, seconds_left=seconds * (steps - step) / step))
        else:
            self.say(f"{progress_text(step, steps, loss=loss)}, {duration(seconds)}")
