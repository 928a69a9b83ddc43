"""Every reason that the tree counts has a phrase for people."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from data_prep.reasons import REASONS, in_words, phrase
from tests.conftest import ROOT

# Calls whose arguments hold a reason, and functions that return one.
CALLS = {"ImageProblem", "_Unusable", "QAParseError", "ItemRefused", "Failed", "Rejected", "RetryableError", "_without"}
METHODS = {"product", "pair"}  # of curation's `drops`
RETURNS = {"_check", "_broken_rule", "_repeats", "_image_problem"}
NOT_REASONS = {"easy", "medium", "hard", "content_filter"}  # categories, and a finish reason of the protocol


def codes(tree: ast.AST) -> Iterator[str]:
    """The string literals of a module that stand where a reason does."""
    for node in ast.walk(tree):
        found: list[ast.AST] = []
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in CALLS or (name in METHODS and "drops" in ast.dump(node.func)):
                found = [*node.args, *(word.value for word in node.keywords if word.arg == "reason")]
                found += [part for arg in found if isinstance(arg, ast.IfExp) for part in (arg.body, arg.orelse)]
        elif isinstance(node, ast.FunctionDef) and node.name in RETURNS:
            for inner in (part.value for part in ast.walk(node) if isinstance(part, ast.Return) and part.value):
                found += inner.elts if isinstance(inner, ast.Tuple) else [inner]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name = getattr(target, "id", getattr(target, "attr", ""))
            if name in {"reason", "problem"}:
                value = node.value
                found = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                found += value.elts[:1] if isinstance(value, ast.Tuple) else []
        for part in found:
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and is_code(part.value):
                yield part.value


def is_code(text: str) -> bool:
    return text.replace("_", "").isalnum() and text.islower() and text not in NOT_REASONS


def test_every_reason_code_of_the_tree_has_a_phrase_and_every_phrase_a_code() -> None:
    texts = [
        path.read_text()
        for folder in ("data_prep", "vqa", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "reasons.py"
    ]
    found = {code for text in texts for code in codes(ast.parse(text))}
    assert len(found) > 40, "the scan finds too little"
    assert found - REASONS.keys() == set()
    assert [code for code in REASONS if not any(f'"{code}"' in text for text in texts)] == []


def test_counted_reasons_read_as_words() -> None:
    assert phrase("status_503") == "the server answered with status 503"
    assert phrase("finished_max_tokens") == "the generator stopped its reply without text: max tokens"
    assert in_words({"over_max_items": 2, "same_image": 1200}) == (
        "another product shows the same image (1,200), beyond prepare.max_items (2)"
    )
