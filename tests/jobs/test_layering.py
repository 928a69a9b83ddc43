"""Nothing is imported upward, and the command line stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("jobs", "slurm", "vqa", "data_prep")
ALLOWED = {
    "slurm": {"slurm", "data_prep.files", "data_prep.outcomes"},  # one atomic write, one "did you mean"
    "data_prep": {"data_prep"},
    "vqa": {
        "vqa",
        "data_prep.records",
        "data_prep.outcomes",
        "data_prep.files",
        "data_prep.images.decode",  # one decoder: models see what was validated
        "data_prep.curate.question_text",
        "data_prep.curate.blind_floor",
    },
    "jobs": {"jobs", "slurm", "vqa", "data_prep"},
}


def imports_of(file: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the direction"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("package", OURS)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = []
    for file in sorted((ROOT / package).rglob("*.py")):
        for name in imports_of(file):
            if name.split(".")[0] not in OURS:
                continue
            allowed = ALLOWED[package]
            # "from data_prep import records" reads as both the package and the module
            if not any(name == a or name.startswith(f"{a}.") or a.startswith(f"{name}.") for a in allowed):
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_only_slurm_imports_submitit_and_data_prep_never_imports_torch() -> None:
    for package in OURS:
        for file in (ROOT / package).rglob("*.py"):
            tops = {name.split(".")[0] for name in imports_of(file)}
            assert package == "slurm" or "submitit" not in tops, file
            assert package in ("vqa",) or not tops & {"torch", "transformers", "peft"}, file


def test_launch_imports_nothing_of_ours_but_jobs() -> None:
    assert {name.split(".")[0] for name in imports_of(ROOT / "launch.py")} & set(OURS) == {"jobs"}


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["status", "no-such-run"]])
def test_help_and_status_do_not_load_torch_or_submitit(arguments: list[str]) -> None:
    program = (
        "import sys; from jobs.cli import main; sys.argv[0] = 'launch.py'\n"
        "main()\n"
        "heavy = {'torch', 'transformers', 'submitit', 'peft'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
