"""The command line, as its user types it: exit codes, and one sentence instead of a traceback."""

from pathlib import Path

import pytest

from tests.conftest import launch, launch_args, output, write_config


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cluster", "mars"], "mars"),
        (["--cluster", "local", "--stages", "prepare,valdate"], "Did you mean 'validate'?"),
        (["--cluster", "local", "--config", "no/such.yaml"], "no configuration file"),
        (["--cluster", "local", "--shards", "0"], "--shards"),
        (["status", "/no/such/run"], "is not a run directory"),
        (["report", "/no/such/run"], "is not a run directory"),
        (["score", "/no/such/file.csv"], "/no/such/file.csv"),
        (["predict", "--image", "x.jpg"], "--question"),
        (["--bogus"], "--bogus"),
        ([], "--cluster local"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments: list[str], words: str) -> None:
    done = launch(*arguments)
    assert done.returncode == 2, output(done)
    assert words in output(done)
    assert "Traceback" not in output(done)


def test_without_abo_it_says_how_to_get_it_and_how_to_run_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABO_ROOT", raising=False)
    done = launch("--cluster", "local")
    assert done.returncode == 2
    for words in ("ABO_ROOT", "abo-listings.tar", "make demo"):
        assert words in output(done)


@pytest.mark.parametrize(
    "broken",
    ["no_root", "no_listings", "no_index", "broken_gzip"],
)
def test_input_that_is_missing_or_broken_is_named(tmp_path: Path, catalogue: Path, broken: str) -> None:
    import shutil

    root = tmp_path / "abo"
    if broken != "no_root":
        shutil.copytree(catalogue, root)
    if broken == "no_listings":
        shutil.rmtree(root / "listings")
    if broken == "no_index":
        (root / "images/metadata/images.csv.gz").unlink()
    if broken == "broken_gzip":
        victim = sorted((root / "listings/metadata").glob("*.gz"))[0]
        victim.write_bytes(victim.read_bytes()[:-20])
    config = write_config(tmp_path / "c.yaml", catalogue, data={"root": str(root)})
    done = launch(*launch_args(config, tmp_path / "run", "--stages", "prepare"))
    assert done.returncode == (1 if broken == "broken_gzip" else 2), output(done)
    assert str(root) in output(done)
    assert "Traceback" not in output(done)


def test_a_run_directory_that_cannot_be_written_is_named(tmp_path: Path, catalogue: Path) -> None:
    (tmp_path / "file").write_text("")
    config = write_config(tmp_path / "c.yaml", catalogue)
    done = launch(*launch_args(config, tmp_path / "file" / "run"))
    assert done.returncode == 2
    assert "--run-dir" in output(done)


def test_a_folder_with_other_things_in_it_is_not_taken_for_a_run(tmp_path: Path, catalogue: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    done = launch(*launch_args(write_config(tmp_path / "c.yaml", catalogue), tmp_path / "home"))
    assert done.returncode == 2
    assert "not a run directory" in output(done)


def test_dry_run_writes_nothing(tmp_path: Path, catalogue: Path) -> None:
    done = launch(*launch_args(write_config(tmp_path / "c.yaml", catalogue), tmp_path / "run", "--dry-run"))
    assert done.returncode == 0, output(done)
    assert "train:blip" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["validate", "generate", "curate", "train", "evaluate"])
def test_a_stage_without_the_one_before_it_says_what_to_launch(tmp_path: Path, catalogue: Path, stage: str) -> None:
    done = launch(*launch_args(write_config(tmp_path / "c.yaml", catalogue), tmp_path / "run", "--stages", stage))
    assert done.returncode in (1, 2)
    assert "has no input" in output(done) and "Launch without --stages" in output(done)
    assert "Traceback" not in output(done)


def test_what_a_kill_left_of_the_first_write_does_not_make_a_folder_foreign(tmp_path: Path, catalogue: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.0a1b.tmp").write_text("{")
    done = launch(*launch_args(write_config(tmp_path / "c.yaml", catalogue), tmp_path / "run", "--stages", "prepare"))
    assert done.returncode == 0, output(done)
    (tmp_path / "run" / "run.json").write_text("{")
    again = launch(*launch_args(write_config(tmp_path / "c.yaml", catalogue), tmp_path / "run", "--stages", "prepare"))
    assert again.returncode == 0, output(again)


def test_a_failing_task_is_named_with_its_log_and_exit_code_1(tmp_path: Path, catalogue: Path) -> None:
    # Nothing listens there.
    generate = {"generator": "google_generativeai", "endpoint": "http://127.0.0.1:9", "max_retries": 0}
    config = write_config(tmp_path / "c.yaml", catalogue, generate=generate)
    done = launch(*launch_args(config, tmp_path / "run", "--stages", "prepare,validate,generate"), GEMINI_API_KEY="key")
    assert done.returncode == 1, output(done)
    assert "No connection to 127.0.0.1:9" in done.stdout
    assert f"{tmp_path}/run/logs/generate/" in done.stdout
    assert "Traceback" not in output(done)
