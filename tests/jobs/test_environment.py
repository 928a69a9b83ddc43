"""pyproject.toml, environment.yml, constraints.txt and lowest.txt describe the same environment."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(file: str) -> dict[str, Version]:
    """The exact versions that a file names, by package."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    assert all([specifier.operator for specifier in pin.specifier] == ["=="] for pin in pins), (
        f"{file}: exact pins only"
    )
    return {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in pins}


def lower_bounds(lines: list[str]) -> dict[str, Version]:
    """The version behind >= of each requirement, by package."""
    return {
        canonicalize_name(requirement.name): Version(specifier.version)
        for requirement in map(Requirement, lines)
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }


def conda_requirements() -> list[str]:
    """What environment.yml has pip install."""
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    return pip


def test_conda_environment_lists_exactly_the_dependencies_of_pyproject() -> None:
    assert sorted(conda_requirements()) == sorted(PROJECT["dependencies"])


def test_every_lower_bound_is_the_version_that_lowest_txt_pins_and_ci_tries() -> None:
    assert lower_bounds(PROJECT["dependencies"]) == pinned("lowest.txt")
    assert lower_bounds(conda_requirements()) == pinned("lowest.txt")
    assert "make test-lowest" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_pinned_version_lies_in_the_range_that_pyproject_states() -> None:
    stated = map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    ranges = {canonicalize_name(requirement.name): requirement.specifier for requirement in stated}
    for name, version in pinned("constraints.txt").items():
        assert version in ranges[name], f"{name} {version} is outside {ranges[name]}"
