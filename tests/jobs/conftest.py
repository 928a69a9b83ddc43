"""Runs that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import launch, launch_args, output, write_config


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, catalogue: Path) -> tuple[Path, Path]:
    """A run of all seven stages on the small catalogue, and its configuration."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "c.yaml", catalogue)
    done = launch(*launch_args(config, folder / "run"))
    assert done.returncode == 0, output(done)
    return folder / "run", config
