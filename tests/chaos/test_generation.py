"""Under all network faults and kills at once, no product is lost, and only replies in flight are paid for twice."""

import hashlib
from pathlib import Path

import pytest

from data_prep.files import read_jsonl
from data_prep.records import Product
from data_prep.stand_in import StandIn
from jobs.run.layout import RunDir
from jobs.shards.marker import ShardMarker
from tests.chaos.generation import FAULTS, Tally, show, try_generation
from tests.conftest import launch, launch_args, output, write_config


def assert_as_promised(tally: Tally, kills: int) -> None:
    show(tally)
    assert tally.problems() == []
    assert tally.kills.by_victim.total() == kills
    assert tally.done > 0
    assert len(tally.outcomes) > 6


@pytest.mark.slow
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


def test_two_products_that_break_the_server_end_as_failed_and_the_launch_as_usual(
    catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "not-a-key")
    run = RunDir(tmp_path / "run")
    with StandIn(catalogue / "facts.jsonl") as server:
        generate = {"endpoint": server.url, "max_retries": 0, "max_tries": 2, "shards": 1}
        options = launch_args(write_config(tmp_path / "run.yaml", catalogue, generate=generate), run.path)
        first = launch(*options, "--stages", "prepare,validate")
        assert first.returncode == 0, output(first)
        products = list(read_jsonl(run.products, Product))
        images = [
            hashlib.sha256((catalogue / "images" / "small" / product.image_path).read_bytes()).hexdigest()
            for product in products
        ]
        poison = set(images[:2])
        usual = server._state.draw
        monkeypatch.setattr(server._state, "draw", lambda image: (1, "status_500") if image in poison else usual(image))
        last = launch(*options, "--stages", "generate")
        assert last.returncode == 0, output(last)
    marker = ShardMarker.read(run.store("generate"), 0)
    assert marker is not None and marker.done == marker.items - marker.failed
    assert marker.reasons == {"status_500": sum(image in poison for image in images)}
    assert sum(entry["outcome"] == "no_image" for entry in server.entries) == 1  # in the pass that had nothing else
