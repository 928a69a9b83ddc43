"""Which tests judge the mutants of which file: those of its folder that take less than 30 s together."""

_STATISTICS = ["tests/vqa/evaluation/test_statistics.py", "tests/vqa/evaluation/test_verdict.py"]
_METRICS = ["tests/vqa/evaluation/test_metrics.py", "tests/vqa/evaluation/test_breakdowns.py"]

TESTS = {
    "vqa/evaluation/statistics.py": _STATISTICS,
    "vqa/evaluation/verdict.py": ["tests/vqa/evaluation/test_verdict.py"],
    "vqa/evaluation/metrics.py": _METRICS,
}
