"""Starts and stops the test cluster by hand.

::

    python -m tests.slurm_cluster start /tmp/tc           # prints the line that makes sbatch and squeue use it
    export SLURM_CONF=/tmp/tc/slurm.conf
    sinfo
    python -m tests.slurm_cluster stop /tmp/tc
"""

import argparse
from pathlib import Path

from tests.slurm_cluster.cluster import SlurmCluster, missing

parser = argparse.ArgumentParser(prog="python -m tests.slurm_cluster", description=__doc__.split("\n")[0])
parser.add_argument("verb", choices=["start", "stop"])
parser.add_argument("folder", type=Path)
parser.add_argument("--no-accounting", action="store_true", help="a site without sacct")
arguments = parser.parse_args()
cluster = SlurmCluster(arguments.folder, accounting=not arguments.no_accounting)
if arguments.verb == "stop":
    cluster.stop()
elif reason := missing():
    raise SystemExit(reason)
else:
    cluster.start()
    print(f"export SLURM_CONF={cluster.conf}")
