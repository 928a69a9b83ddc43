"""A second kind of site: limits on submission, memory that is watched, no requeueing unless asked for, short time limits, mails.

Differs from `tests.slurm_cluster.cluster` only in slurm.conf and in what sacctmgr is told.
"""

from __future__ import annotations

from pathlib import Path

from tests.slurm_cluster.cluster import SlurmCluster

MAX_SUBMIT = 10
CHANGED = {
    "SelectTypeParameters": "CR_Core_Memory",
    "JobAcctGatherType": "jobacct_gather/linux",
    "JobRequeue": "0",
    "MaxArraySize": "101",
}
ADDED = [
    "JobAcctGatherFrequency=task=1",
    "JobAcctGatherParams=OverMemoryKill",
    "AccountingStorageEnforce=associations,limits,qos",
    "KillOnBadExit=1",
    "EnforcePartLimits=ALL",
    "PrivateData=jobs",
]


class StrictCluster(SlurmCluster):
    """The site. A node's prolog fails while there is a file of the node's name in ``broken/``; mails go to ``mails.txt``."""

    def start(self) -> None:
        """Start all daemons and set the limits; see `SlurmCluster.start`."""
        super().start()
        self.run("sacctmgr", "-i", "modify", "qos", "normal", "set", f"MaxSubmitJobsPerUser={MAX_SUBMIT}")

    @property
    def mails(self) -> list[str]:
        """The subjects of the mails that SLURM sent, each with its receiver."""
        file = self.folder / "mails.txt"
        return file.read_text().splitlines() if file.exists() else []

    def break_node(self, node: str) -> None:
        """Let the node's prolog fail from now on."""
        (self.folder / "broken" / node).touch()

    def mend_node(self, node: str) -> None:
        """Let it succeed again, and take the node back into service."""
        (self.folder / "broken" / node).unlink()
        self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def _start_accounting(self) -> None:
        super()._start_accounting()
        self.run("sacctmgr", "-i", "add", "account", "science", check=False)
        self.run("sacctmgr", "-i", "add", "user", "root", "account=science", check=False)

    def _write_conf(self) -> None:
        super()._write_conf()
        (self.folder / "broken").mkdir(exist_ok=True)
        prolog = self._script("prolog", f'[ ! -e "{self.folder}/broken/$SLURMD_NODENAME" ]')
        mailer = self._script("mailer", f'echo "$*" >> "{self.folder}/mails.txt"')
        lines = []
        for line in self.conf.read_text().splitlines():
            name = line.partition("=")[0]
            line = f"{name}={CHANGED[name]}" if name in CHANGED else line
            lines.append(
                line.replace("MaxTime=INFINITE", "MaxTime=30") if line.startswith("PartitionName=cpu") else line
            )
        self.conf.write_text("\n".join([*lines, *ADDED, f"Prolog={prolog}", f"MailProg={mailer}"]) + "\n")

    def _script(self, name: str, line: str) -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(0o755)
        return path
