"""Which tests judge the mutants of which file: those that state its promises, and take less than 30 s together."""

_LOOP = ["tests/jobs/shards"]
_LEDGER = [
    f"tests/data_prep/generate/quota/test_budget.py::{test}"  # without those that launch whole runs
    for test in (
        "test_a_cap_that_is_set_later_knows_what_was_spent_without_one",
        "test_what_a_task_did_not_need_is_left_to_the_next",
        "test_what_was_left_is_taken_by_one_task_only",
        "test_a_cap_below_what_was_claimed_allows_what_was_not_spent_of_it",
        "test_a_request_that_was_never_settled_counts_with_all_that_it_had_reserved",
        "test_what_is_released_can_be_reserved_again_by_any_task",
        "test_a_closed_ledger_file_is_on_the_disk_and_let_go_of",
        "test_a_request_that_timed_out_counts_as_the_most_expensive_one",
    )
]
_QUOTA = ["tests/data_prep/generate/test_rate_limit.py"]
_SPLITS = ["tests/data_prep/curate/test_splits.py"]
_STATISTICS = ["tests/vqa/evaluation/test_statistics.py", "tests/vqa/evaluation/test_verdict.py"]

TESTS = {
    "jobs/shards/loop.py": _LOOP,
    "jobs/shards/progress.py": _LOOP,
    "jobs/shards/journal.py": [*_LOOP, "tests/data_prep/test_files.py"],
    "data_prep/generate/quota/spending.py": _LEDGER,
    "data_prep/generate/quota/budget.py": _LEDGER,
    "data_prep/generate/quota/rate_limit.py": _QUOTA,
    "data_prep/curate/splits.py": _SPLITS,
    "data_prep/images/near_duplicates.py": _SPLITS,
    "vqa/evaluation/statistics.py": _STATISTICS,
    "vqa/evaluation/verdict.py": ["tests/vqa/evaluation/test_verdict.py"],
    "vqa/evaluation/metrics.py": ["tests/vqa/evaluation/test_metrics.py", "tests/vqa/evaluation/test_breakdowns.py"],
}
