"""Under all network faults and kills at once, no product is lost, and only replies in flight are paid for twice."""

from pathlib import Path

import pytest

from tests.chaos.generation import FAULTS, Tally, show, try_generation


def assert_as_promised(tally: Tally, kills: int) -> None:
    show(tally)
    assert tally.problems() == []
    assert tally.kills.by_victim.total() == kills
    assert tally.done > 0
    assert len(tally.outcomes) > 6


def test_twenty_products_survive_every_fault_and_two_kills(tmp_path: Path) -> None:
    assert_as_promised(try_generation(tmp_path, products=20, kills=2, seed=1, generator="google_genai"), kills=2)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_2000_products_survive_every_fault_and_30_kills(
    tmp_path: Path,
) -> None:
    tally = try_generation(tmp_path, products=2000, kills=30, seed=1, generator="google_generativeai")
    assert_as_promised(tally, kills=30)
    assert set(tally.outcomes) == {"ok", *FAULTS}
