"""The checks of a site find what would go wrong, and say what to do."""

import re
from pathlib import Path

import pytest

from slurm.site_check import Check, SharedFolder, node_checks, site_checks
from slurm.submit import Cluster
from tests.slurm.conftest import SmallRun
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


def cluster_of(run: SmallRun) -> Cluster:
    run.step("validate", 30, [])
    run.step("train", None, ["validate"])
    return Cluster(run.profile, run.chain.path, "doctor")


def bad(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.ok is False]


def test_a_profile_that_fits_the_site_passes_all_checks(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "it's here", stages={"train": {"gpus": 2, "partition": "high"}})
    cluster = cluster_of(run)
    checks = site_checks(cluster, run.steps) + node_checks(cluster, run.steps, ["json", "slurm.chain"])
    assert not bad(checks)
    assert {"accounting", "array limit", "resources of train"} <= {check.name for check in checks}
    assert sum("run directory writable" in check.name for check in checks) == 2, "one job per partition"
    assert not run.jobs()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"partition": "gpuu"}, "invalid partition"),
        ({"gpus": 9}, "Requested node configuration is not available"),
        ({"memory": "900G"}, ""),
        ({"constraint": "v100"}, "[Ii]nvalid feature"),
    ],
)
def test_what_the_site_would_refuse_is_found_before_anything_is_queued(
    slurm_cluster: SlurmCluster, tmp_path: Path, wrong: dict[str, object], words: str
) -> None:
    run = SmallRun(tmp_path, stages={"train": wrong})
    (problem,) = bad(site_checks(cluster_of(run), run.steps))
    assert problem.name == "resources of train"
    assert "stages.train" in problem.advice
    assert re.search(words, problem.detail)


def test_a_module_missing_on_the_nodes_and_a_failing_setup_are_found(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(tmp_path)
    (problem,) = bad(node_checks(cluster_of(run), run.steps, ["no_such_module"]))
    assert "no_such_module" in problem.name
    assert "setup" in problem.advice
    broken = SmallRun(tmp_path, setup=["module() { exit 3; }", "module load cuda"])
    (problem,) = bad(node_checks(cluster_of(broken), broken.steps, []))
    assert "could not start" in problem.detail


def test_a_run_directory_that_the_nodes_do_not_see_is_found(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    # On one machine all nodes see all files. The setup line deletes the file, so that the probe misses it.
    run = SmallRun(tmp_path, setup=[f"rm {tmp_path}/slurm/probe.*"])
    problems = bad(node_checks(cluster_of(run), run.steps, []))
    assert [problem.name.partition(": ")[2] for problem in problems] == ["run directory visible"]
    assert "--run-dir" in problems[0].advice


def test_a_quota_folder_that_the_nodes_do_not_see_is_found(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    quota = SharedFolder("quota folder", tmp_path / "cache" / "quota", "Set generate.quota_folder.")
    seen = SmallRun(tmp_path / "seen")
    checks = node_checks(cluster_of(seen), seen.steps, [], [quota])
    assert not bad(checks)
    assert {"quota folder visible", "quota folder writable"} <= {check.name.partition(": ")[2] for check in checks}
    run = SmallRun(tmp_path / "unseen", setup=[f"rm {quota.path}/probe.*"])
    (problem,) = bad(node_checks(cluster_of(run), run.steps, [], [quota]))
    assert problem.name.endswith("quota folder visible") and problem.advice == quota.advice
    assert not quota.path.exists()


def test_without_slurm_the_check_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = SmallRun(tmp_path)
    (problem,) = bad(site_checks(cluster_of(run), run.steps))
    assert "Log in" in problem.advice
