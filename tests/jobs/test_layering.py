"""Nothing is imported upward or in a circle, folders stay small, and the command line stays light."""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import launch_args, write_config

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
        "data_prep.images.locate",  # and one way to find its file
        "data_prep.normalize",  # one normalization of answers
        "data_prep.reasons",  # one phrase for a reason code
        "data_prep.curate.question_text",
        "data_prep.curate.blind_floor",
    },
    "jobs": {"jobs", "slurm", "vqa", "data_prep"},
}
KNOW_THE_CLUSTER = {"jobs.backends.slurm", "jobs.backends.check_step", "jobs.verbs.doctor"}
OF_SLURM_FOR_ALL = {"slurm.process"}  # exit code 75 and processes that die with their parent; imports nothing of SLURM


def module_name(file: Path) -> str:
    """jobs/run/layout.py is jobs.run.layout, and vqa/__init__.py is vqa."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(file): file for package in OURS for file in sorted((ROOT / package).rglob("*.py"))}


def imports_of(file: Path) -> set[str]:
    """Every module that a file imports: at its top, inside functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the direction"
            # In "from jobs.backends import slurm" the name is a module, in "from jobs.config import Config" it is not.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in names}
    return found


IMPORTS = {module: imports_of(file) for module, file in FILES.items()}


def cycles(graph: dict[str, set[str]]) -> Iterator[str]:
    """Cycles of imports, of any length; cutting each at one import leaves none."""
    graph = {module: set(imported) for module, imported in graph.items()}
    while True:
        try:
            graphlib.TopologicalSorter(graph).prepare()
            return
        except graphlib.CycleError as error:
            cycle = error.args[1]  # each is imported by the next; the first is also the last
            yield " imports ".join(reversed(cycle))
            graph[cycle[1]].remove(cycle[0])


def test_a_cycle_of_any_length_is_found_and_named() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"d"}}
    assert sorted(sorted(set(cycle.split(" imports "))) for cycle in cycles(graph)) == [["a", "b", "c"], ["d"]]


def test_no_module_imports_itself_through_others() -> None:
    found = list(cycles(IMPORTS))
    assert not found, f"{len(found)} import cycles:\n" + "\n".join(found)


@pytest.mark.parametrize("package", OURS)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, imported in IMPORTS.items()
        for name in sorted(imported)
        if module.split(".")[0] == package and name.split(".")[0] in OURS
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[package])
    ]
    assert not wrong


def test_only_slurm_imports_submitit_and_only_vqa_imports_torch() -> None:
    for module, imported in IMPORTS.items():
        tops = {name.split(".")[0] for name in imported}
        assert module.startswith("slurm.") or "submitit" not in tops, module
        assert module.split(".")[0] == "vqa" or not tops & {"torch", "transformers", "peft"}, module


def test_of_jobs_only_the_slurm_back_end_its_check_step_and_doctor_import_slurm() -> None:
    importers = {
        module
        for module, imported in IMPORTS.items()
        if module.startswith("jobs.")
        if any(name.split(".")[0] == "slurm" for name in imported - OF_SLURM_FOR_ALL)
    }
    assert importers == KNOW_THE_CLUSTER


def test_launch_imports_nothing_of_ours_but_jobs() -> None:
    assert {name.split(".")[0] for name in imports_of(ROOT / "launch.py")} & set(OURS) == {"jobs"}


def test_a_folder_has_at_most_12_modules() -> None:
    folders = Counter(file.parent for file in FILES.values() if file.name != "__init__.py")
    assert {folder: size for folder, size in folders.items() if size > 12} == {}


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["status", "no-such-run"]])
def test_help_and_status_do_not_load_torch_or_submitit(arguments: list[str]) -> None:
    assert not loaded_by(arguments) & {"torch", "transformers", "submitit", "peft"}


def test_a_local_launch_its_status_and_its_logs_do_not_load_the_slurm_back_end(tmp_path: Path, catalogue: Path) -> None:
    config = write_config(tmp_path / "c.yaml", catalogue)
    run_dir = tmp_path / "run"
    for arguments in (
        [*launch_args(config, run_dir, "--stages", "prepare,validate")],
        ["status", run_dir],
        ["logs", run_dir],
    ):
        modules = loaded_by([str(argument) for argument in arguments])
        assert "jobs.run.layout" in modules, "nothing was run"
        loaded = {name for name in modules if name.startswith(("slurm.", "jobs.backends.slurm", "submitit"))}
        assert loaded <= OF_SLURM_FOR_ALL, arguments


def loaded_by(arguments: list[str]) -> set[str]:
    """The modules that launch.py has loaded by the end of one command."""
    program = (
        "import sys; from jobs.cli import main; sys.argv[0] = 'launch.py'\n"
        "main()\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())
