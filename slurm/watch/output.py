"""What SLURM itself wrote about a job, beside the task's own log: limits that were hit, prologs that failed, nodes that went.

submitit has SLURM write it to ``slurm/submitit/1234_7_0_log.out``, next to lines of its own::

    slurmstepd: error: *** STEP 1234.0 ON n1 CANCELLED AT 2026-12-01T09:40:10 DUE TO TIME LIMIT ***
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

TAIL_BYTES = 16_384
OUT_OF_MEMORY = re.compile(r"exceeded (?:job |step )?memory limit|oom.?kill|out.of.memory", re.IGNORECASE)
TIME_LIMIT = re.compile(r"due to time limit", re.IGNORECASE)
FROM_SLURM = re.compile(r"^(?:slurm[\w.-]*|srun|sbatch): (?:error|fatal): (.*)")


def slurm_error(paths: Iterable[Path]) -> str:
    """The last error that SLURM wrote; one about memory or time goes before those that follow from it. "" for none."""
    found = [line for path in sorted(paths) for line in _errors(path)]
    telling = [line for line in found if OUT_OF_MEMORY.search(line) or TIME_LIMIT.search(line)]
    return next(iter((telling or found)[-1:]), "")


def _errors(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [match[1].strip() for line in lines if (match := FROM_SLURM.match(line))]
