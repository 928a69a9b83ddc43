"""environment.yml and pyproject.toml describe the same environment."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_conda_environment_lists_exactly_the_dependencies_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    assert sorted(pip) == sorted(project["dependencies"])
    assert f"python{project['requires-python']}" in conda


def test_every_pinned_version_lies_in_the_range_that_pyproject_states() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    ranges = {canonicalize_name(r.name): r.specifier for r in stated}
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    for pin in pins:
        (version,) = [specifier.version for specifier in pin.specifier]
        assert version in ranges[canonicalize_name(pin.name)], f"{pin} is outside {ranges[canonicalize_name(pin.name)]}"
