"""What lies at the paths outside of a run that it depends on: a model's folder, a file, or a name on the hub.

Identity is content: weights that were exchanged under their path are noticed, and weights that were moved are not taken for others.
Digests are kept in ``contents.json``, because a model has gigabytes, and because what a finished run was made from may be gone::

    {"/models/blip": {"identity": "sha256:5be1c0ff...", "files": {"model.safetensors": [1538800584, 1764073423000000000]}}}
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from data_prep.files import file_digest, read_json, without_folder, write_json
from jobs.run.layout import RunDir

# What transformers reads of a folder. Weights in torch's own format count where there are no others.
PATTERNS = ("*.safetensors", "*.json", "*.txt")
OLD_WEIGHTS = "pytorch_model*.bin"


def weights_identity(run: RunDir, weights: str) -> str:
    """The digest of a folder (``sha256:...``), or name and commit of weights in the hub's cache.

    Weights that are not here now are those that they were known to be, and by name alone before that.
    """
    if files := _model_files(Path(weights)):
        return _remembered(run, weights, files, lambda: _folder_digest(Path(weights), files))
    commit = hub_commit(weights)
    return _remembered(run, weights, {}, lambda: f"{weights}@{commit}" if commit else "") or weights


def file_identity(run: RunDir, path: Path) -> str:
    """A file's SHA-256; of one that is gone what it was known to be, "" before that."""
    files = {path.name: _state(path)} if path.is_file() else {}
    return _remembered(run, str(path), files, lambda: file_digest(path) if files else "")


def _remembered(run: RunDir, name: str, files: dict[str, list[int]], compute: Callable[[], str]) -> str:
    """What was computed for a name before, unless its files changed since or there is something new to be known."""
    known = read_json(run.contents) or {}
    key = without_folder(name, run.path)
    before = known.get(key, {})
    if files and before.get("files") == files:
        return str(before["identity"])
    found = {"identity": compute(), "files": files}
    if not found["identity"]:
        return str(before.get("identity", ""))
    if found != before and run.run_file.exists():
        with suppress(OSError):  # a finished run may be write-protected
            write_json(run.contents, known | {key: found})
    return str(found["identity"])


def _model_files(folder: Path) -> dict[str, list[int]]:
    """Size and modification time (ns) of what transformers reads of a folder; empty where there is no such folder."""
    if not folder.is_dir():
        return {}
    patterns = PATTERNS if any(folder.glob(PATTERNS[0])) else (*PATTERNS, OLD_WEIGHTS)
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {path.name: _state(path) for path in paths}


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _folder_digest(folder: Path, names: dict[str, list[int]]) -> str:
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name} {file_digest(folder / name)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def hub_commit(weights: str) -> str | None:
    """The commit of a model in the hub's cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(weights, "config.json")
    except HFValidationError:  # a path
        return None
    return Path(found).parent.name if isinstance(found, str) else None


def download(weights: str) -> Path:
    """Download a model from the hub into the cache; its folder.

    Raises:
        UserError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    from vqa.models.base import missing_weights

    try:
        folder = snapshot_download(weights, allow_patterns=list(PATTERNS))
        # Older models have their weights in torch's own format only.
        if not any(Path(folder).glob(PATTERNS[0])):
            folder = snapshot_download(weights, allow_patterns=[*PATTERNS, OLD_WEIGHTS])
    except Exception as error:  # the hub's client has dozens of kinds, all with the same way out
        raise missing_weights(weights, error) from error
    return Path(folder)
