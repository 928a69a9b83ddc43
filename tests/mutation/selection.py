"""Which tests judge the mutants of which file: those that state its promises, and take less than 30 s together."""

_LOOP = ["tests/jobs/shards"]
_QUOTA = ["tests/data_prep/generate/test_rate_limit.py"]
_SPLITS = ["tests/data_prep/curate/test_splits.py"]
_STATISTICS = ["tests/vqa/evaluation/test_statistics.py", "tests/vqa/evaluation/test_verdict.py"]

TESTS = {
    "jobs/shards/loop.py": _LOOP,
    "jobs/shards/progress.py": _LOOP,
    "jobs/shards/journal.py": [*_LOOP, "tests/data_prep/test_files.py"],
    "data_prep/generate/quota/spending.py": ["tests/data_prep/generate/quota/test_budget.py"],
    "data_prep/generate/quota/rate_limit.py": _QUOTA,
    "data_prep/curate/splits.py": _SPLITS,
    "data_prep/images/near_duplicates.py": _SPLITS,
    "vqa/evaluation/statistics.py": _STATISTICS,
    "vqa/evaluation/verdict.py": ["tests/vqa/evaluation/test_verdict.py"],
    "vqa/evaluation/metrics.py": ["tests/vqa/evaluation/test_metrics.py", "tests/vqa/evaluation/test_breakdowns.py"],
}
