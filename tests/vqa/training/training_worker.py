"""One training in a process of its own, to be killed, signaled and starved by tests; it takes a request in JSON.

Ends like a task: 0 done, 75 asked to stop, 1 with a line that starts with ``error:``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from data_prep.outcomes import Interrupted, UserError
from jobs.backends.stop import StopFlag
from slurm.process import REQUEUE


def main() -> int:
    request = json.loads(sys.argv[1])
    stop = StopFlag().install()
    from vqa.settings import ModelSettings, TrainSettings
    from vqa.training.train import train

    try:
        train(
            "tiny",
            ModelSettings.model_validate(request["model"]),
            TrainSettings.model_validate(request["settings"]),
            data=Path(request["data"]),
            image_root=Path(request["image_root"]),
            out=Path(request["out"]),
            stop=stop,
        )
    except UserError as error:
        print(f"error: {error}", flush=True)
        return 1
    except Interrupted as stopped:
        print(f"stopped: {stopped}", flush=True)
        return REQUEUE
    return 0


if __name__ == "__main__":
    sys.exit(main())
