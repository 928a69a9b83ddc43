"""The local pool runs at most as many tasks as it may, and every task that it starts ends when it should."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from jobs.backends.pool import FinishedTask, Task, run_tasks
from slurm.process import REQUEUE
from tests.conftest import ROOT


def python(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-Sc", textwrap.dedent(program), *map(str, arguments)]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out waiting"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which its parent has not reaped, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


NOTE_START_AND_END = """
    import os, sys, time
    folder, name = sys.argv[1:]
    open(f"{folder}/{name}.running", "w").close()
    open(f"{folder}/{name}.seen", "w").write(str(len([f for f in os.listdir(folder) if f.endswith(".running")])))
    time.sleep(0.15)
    os.remove(f"{folder}/{name}.running")
"""


def test_never_more_than_workers_run_at_once_and_all_run(tmp_path: Path) -> None:
    tasks = [Task(str(i), python(NOTE_START_AND_END, tmp_path, i), tmp_path / "log") for i in range(9)]
    results = run_tasks(tasks, workers=3)
    seen = [int(file.read_text()) for file in tmp_path.glob("*.seen")]
    assert len(seen) == 9
    assert 2 <= max(seen) <= 3
    assert [result.returncode for result in results] == [0] * 9
    assert [result.task.name for result in results] == [task.name for task in tasks]


def test_a_tasks_output_is_in_its_own_log_and_its_exit_code_is_reported(tmp_path: Path) -> None:
    program = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    (result,) = run_tasks([Task("t", python(program), tmp_path / "deep" / "t.log")], workers=1)
    assert result.returncode == 3
    assert (tmp_path / "deep" / "t.log").read_text() == "out\nerr\n"


def test_a_command_that_does_not_exist_is_a_failed_task_that_says_so(tmp_path: Path) -> None:
    (result,) = run_tasks([Task("t", ["no-such-command-anywhere"], tmp_path / "log")], workers=1)
    assert result.returncode == 1
    assert "error: cannot start no-such-command-anywhere" in (tmp_path / "log").read_text()


def test_arguments_and_environment_reach_a_task_unchanged(tmp_path: Path) -> None:
    nasty = "a b'c\"$(touch pwned)`x`\n;*"
    program = "import os, sys; sys.exit(0 if sys.argv[1] == os.environ['SAME'] else 1)"
    (result,) = run_tasks([Task("t", python(program, nasty), tmp_path / "log", {"SAME": nasty})], workers=1)
    assert result.returncode == 0


def test_each_running_task_has_a_gpu_to_itself(tmp_path: Path) -> None:
    program = NOTE_START_AND_END + "    print(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    tasks = [Task(str(i), python(program, tmp_path, i), tmp_path / f"{i}.log") for i in range(4)]
    run_tasks(tasks, workers=8, gpus=["0", "3"])
    assert max(int(file.read_text()) for file in tmp_path.glob("*.seen")) <= 2
    assert {(tmp_path / f"{i}.log").read_text().strip() for i in range(4)} == {"0", "3"}


EXITS_WHEN_ASKED = """
    import signal, sys, time
    marker, asked = sys.argv[1], []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(signal.Signals(number).name))
    open(marker, "w").close()
    while not asked:
        time.sleep(0.02)
    print(asked[0], flush=True)
    sys.exit(75)
"""


def test_a_stop_ends_running_tasks_gently_and_starts_no_more(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    tasks = [Task(str(i), python(EXITS_WHEN_ASKED, marker), tmp_path / f"{i}.log") for i in range(3)]
    results = run_tasks(tasks, workers=1, stop=marker.exists)
    assert results == [FinishedTask(task, REQUEUE) for task in tasks]
    assert [log.read_text() for log in tmp_path.glob("*.log")] == ["SIGTERM\n"], "only the first task was started"


def test_a_task_that_ignores_a_stop_is_killed_after_the_grace_time(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[1], "w").close()
        time.sleep(60)
    """
    (result,) = run_tasks([Task("t", python(program, marker), tmp_path / "log")], 1, marker.exists, grace=0.2)
    assert result.returncode == -signal.SIGKILL


def test_a_task_that_exits_with_requeue_is_reported_as_interrupted(tmp_path: Path) -> None:
    (result,) = run_tasks([Task("t", python("raise SystemExit(75)"), tmp_path / "log")], workers=1)
    assert result.returncode == REQUEUE


def test_a_task_stopped_before_it_handles_signals_counts_as_interrupted(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(60)"
    (result,) = run_tasks([Task("t", python(program, marker), tmp_path / "log")], 1, marker.exists)
    assert result.returncode == REQUEUE


def test_processes_that_a_task_leaves_behind_end_with_it(tmp_path: Path) -> None:
    program = """
        import subprocess, sys
        print(subprocess.Popen(["sleep", "60"]).pid)
    """
    run_tasks([Task("t", python(program), tmp_path / "log")], workers=1)
    child = int((tmp_path / "log").read_text())
    wait_until(lambda: not alive(child))


def test_kill_9_of_the_launcher_leaves_no_task_behind(tmp_path: Path) -> None:
    launcher = """
        import sys
        from pathlib import Path
        from jobs.backends.pool import Task, run_tasks
        folder = Path(sys.argv[1])
        program = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
        run_tasks([Task(str(i), [sys.executable, "-c", program, f"{folder}/{i}.pid"], folder / "log") for i in (0, 1)], 2)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(launcher), str(tmp_path)], cwd=ROOT)
    files = [tmp_path / "0.pid", tmp_path / "1.pid"]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))
