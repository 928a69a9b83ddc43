"""Breaks the code in one place at a time and sees whether a test fails: ``make mutants``.

Where the tests still pass, either nothing tests that place, or the mutant does the same as the original. Mutants are sampled
with a stated seed: places first, then one of the operators that apply there, so that no place counts more than once. Each runs
against the tests of its file, in a copy of the tree.

Operators are Cosmic Ray's (https://cosmic-ray.readthedocs.io), and one of ours that removes a call.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

from tests.conftest import ROOT
from tests.mutation.selection import TESTS

LIMIT_SECONDS = 240.0  # a mutant that loops forever is noticed, too; tests of one file take less than 30 s
# Of no use here: they replace names at random, or change what only the type checker reads.
_LEFT_OUT = ("core/VariableInserter", "core/VariableReplacer", "core/RemoveDecorator", "core/ExceptionReplacer")


class RemoveCall(Operator):  # type: ignore[misc]
    """Replaces a statement that is a call by ``pass``, such as one that puts a file on the disk."""

    def mutation_positions(self, node):  # type: ignore[no-untyped-def]
        if node.type == "expr_stmt" or node.parent is None or node.parent.type != "simple_stmt":
            return
        if node.type in ("atom_expr", "power") and node.children[-1].type == "trailer":
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):  # type: ignore[no-untyped-def]
        return parso.python.tree.Name("pass", node.start_pos, prefix=node.get_first_leaf().prefix)

    @classmethod
    def examples(cls):  # type: ignore[no-untyped-def]
        return ()


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file."""

    file: str  # relative to the repository
    line: int
    operator: str
    code: str  # of the whole file

    def describe(self, original: str) -> str:
        """The place, and the changed line before and after."""
        before, after = original.splitlines(), self.code.splitlines()
        changed = [pair for pair in zip(before, after, strict=False) if pair[0] != pair[1]]
        old, new = changed[0] if changed else ("", "")
        return (
            f"{self.file}:{self.line} {self.operator.removeprefix('core/')}\n    - {old.strip()}\n    + {new.strip()}"
        )


def operators() -> dict[str, Operator]:
    """All operators that are used, by name."""
    names = [name for name in operator_names() if name not in _LEFT_OUT and not name.endswith(("_Is", "_IsNot"))]
    return {**{name: get_operator(name)() for name in names}, "RemoveCall": RemoveCall()}


def mutants_of(file: str, rng: random.Random) -> list[Mutant]:
    """One mutant for each place of a file that an operator can change."""
    source = (ROOT / file).read_text()
    tree = get_ast(source)
    places: dict[tuple[int, int], list[tuple[str, Operator, int]]] = {}
    for name, operator in operators().items():
        count = 0
        for node in ast_nodes(tree):
            for start, _ in operator.mutation_positions(node):
                places.setdefault(start, []).append((name, operator, count))
                count += 1
    found = []
    for (line, _), choices in sorted(places.items()):
        rng.shuffle(choices)
        for name, operator, occurrence in choices:
            code = mutate_code(source, operator, occurrence)
            if code is not None and does_something_else(source, code):
                found.append(Mutant(file, line, name, code))
                break
    return found


def does_something_else(source: str, mutated: str) -> bool:
    """Whether a mutant is valid Python and more than another annotation."""
    try:
        return _bare(source) != _bare(mutated)
    except SyntaxError:
        return False


def _bare(source: str) -> str:
    """A dump of the syntax tree without what changes no result, and without values that a test could only repeat.

    Left out are annotations, decorators of classes, the marks "/" and "*" among parameters, the arguments ``flush`` (when a
    line is seen) and ``strict`` (of zip: an assertion about lengths that are equal), and the numbers of tuning constants
    (module-level names in capitals) and of defaults (of parameters and fields).
    """
    tree = ast.parse(source)
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and all(
            isinstance(n, ast.Name) and n.id.isupper() for n in statement.targets
        ):
            statement.value = _without_numbers(statement.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in ("flush", "strict")]
        elif isinstance(node, ast.ClassDef):
            node.decorator_list = []
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and field.value is not None:
                    field.value = _without_numbers(field.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
            node.args.args += node.args.posonlyargs + node.args.kwonlyargs
            node.args.defaults += [default for default in node.args.kw_defaults if default is not None]
            node.args.defaults = [_without_numbers(default) for default in node.args.defaults]
            node.args.posonlyargs, node.args.kwonlyargs, node.args.kw_defaults = [], [], []
            node.args.args.sort(key=lambda one: one.arg)
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def _without_numbers(value: ast.expr) -> ast.expr:
    """An expression that is made of numbers alone as one that says nothing; any other as it is."""
    parts = (ast.Constant, ast.Tuple, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop, ast.Load)
    made_of_numbers = all(
        isinstance(part, parts) and not isinstance(getattr(part, "value", 0), str | bytes) for part in ast.walk(value)
    )
    return ast.Constant(None) if made_of_numbers else value


def survives(mutant: Mutant, tree: Path) -> bool:
    """Whether all tests of its file pass on a mutant.

    Args:
        mutant: to try.
        tree: a copy of the repository, restored afterwards.
    """
    path = tree / mutant.file
    original = path.read_text()
    try:
        path.write_text(mutant.code)
        return _passes(tree, TESTS[mutant.file])
    finally:
        path.write_text(original)


def _passes(tree: Path, tests: list[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait(timeout=LIMIT_SECONDS) == 0
    except subprocess.TimeoutExpired:
        print(f"no end within {LIMIT_SECONDS:.0f} s: counts as noticed", flush=True)
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # processes that the tests started, too
        process.wait()


def copy_tree(to: Path) -> Path:
    """A copy of the repository without what is not code, beside the same data."""
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "runs", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, to / "project", ignore=ignored, symlinks=True)
    (to / "shared").symlink_to(ROOT.parent / "shared")  # data that some tests read, where it is there
    return to / "project"


def main() -> int:
    """Run from the command line; return 1 where fewer than 90 % were killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.split("\n")[0])
    parser.add_argument(
        "files", nargs="*", default=sorted(TESTS), help="files to break (default: all with a selection)"
    )
    parser.add_argument("--mutants", type=int, default=400, help="how many at most (default: 400)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    population = [mutant for file in options.files for mutant in mutants_of(file, rng)]
    chosen = rng.sample(population, min(options.mutants, len(population)))
    with tempfile.TemporaryDirectory() as folder:
        trees: Queue[Path] = Queue()
        for number in range(options.at_once):
            trees.put(copy_tree(Path(folder) / str(number)))
        for file in sorted({mutant.file for mutant in chosen}):
            tree, started = trees.get(), time.monotonic()
            if not _passes(tree, TESTS[file]):
                raise SystemExit(f"{file}: its tests fail without any mutant: {' '.join(TESTS[file])}")
            print(f"{file}: tests pass in {time.monotonic() - started:.0f} s without a mutant", flush=True)
            trees.put(tree)

        def try_one(mutant: Mutant) -> bool:
            tree = trees.get()
            try:
                return survives(mutant, tree)
            finally:
                trees.put(tree)

        survivors: list[Mutant] = []
        with ThreadPoolExecutor(options.at_once) as pool:
            for number, (mutant, alive) in enumerate(zip(chosen, pool.map(try_one, chosen), strict=True), 1):
                if alive:
                    survivors.append(mutant)
                    print(f"survived: {mutant.describe((ROOT / mutant.file).read_text())}", flush=True)
                if number % 20 == 0:
                    print(f"{number:,} of {len(chosen):,}, {len(survivors)} survived", flush=True)
    killed = 1 - len(survivors) / len(chosen)
    print(
        f"{len(chosen):,} of {len(population):,} places, seed {options.seed}: {killed:.1%} killed, "
        f"{len(survivors)} survived"
    )
    return int(killed < 0.9)


if __name__ == "__main__":
    raise SystemExit(main())
