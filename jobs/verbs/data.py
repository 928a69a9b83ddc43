"""``launch.py fetch --data``: ABO's listings and small images, downloaded and unpacked."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from data_prep.abo.download import ARCHIVES, SOURCE, fetch_archive
from jobs.progress_line import ProgressLine


def fetch_data(folder: Path, mirror: str | None, out: Console) -> None:
    """Download what is missing of ABO; the same call again goes on.

    Args:
        folder: takes it, in ABO's own layout.
        mirror: URL of the archives' folder; None: where ABO is published.
        out: takes the progress.

    Raises:
        UserError: an archive cannot be had, or does not fit on the disk.
    """
    line = ProgressLine(out, "fetch")

    def progress(what: str, done: int, total: int) -> None:
        if line.due():
            line.say(f"{what}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

    for name in ARCHIVES:
        new = fetch_archive(name, folder, progress, source=mirror or SOURCE)
        out.print(f"{name}: {'downloaded and unpacked' if new else 'there already'}", markup=False)
    out.print(f"ABO is in {folder}. To use it: export ABO_ROOT={folder.resolve()}", markup=False)
