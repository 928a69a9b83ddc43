"""Long work says how far it is, on a terminal and in a log file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jobs import progress_line


def test_progress_is_printed_where_the_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: now)
    said = io.StringIO()
    say = progress_line.ProgressLine(Console(file=said, width=120), "training")
    for step in range(1, 41):
        now += 1.0
        say(step, 40, 0.5)
    assert said.getvalue().splitlines() == [
        "training: step 15 of 40, loss 0.500, 25 s left",
        "training: step 30 of 40, loss 0.500, 10 s left",
        "training: step 40 of 40, loss 0.500, 40 s",
    ]


def test_a_line_says_what_is_known_and_leaves_out_what_is_not() -> None:
    text = progress_line.progress_text
    assert text(40, 90, loss=0.2312, validation=0.5, per_second=1.26, seconds_left=40.0) == (
        "step 40 of 90, loss 0.231, validation 0.500, 1.3/s, 40 s left"
    )
    assert text(1200, 30000, "items", per_second=None, seconds_left=7200.0) == "1,200 of 30,000 items, 2.0 h left"
