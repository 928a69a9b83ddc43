"""Downloads ABO's archives and unpacks them. Interrupted anywhere, the same call goes on where it stopped.

::

    abo/abo-listings.tar.part        bytes so far; abo-listings.tar.part.json says of which version (ETag)
    abo/listings/, abo/images/       unpacked
    abo/abo-listings.tar.json        this archive was unpacked whole: its URL, bytes and ETag
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from data_prep.files import read_json, write_json
from data_prep.outcomes import UserError

SOURCE = "https://amazon-berkeley-objects.s3.amazonaws.com/archives"
ARCHIVES = ("abo-listings.tar", "abo-images-small.tar")
TRIES = 8  # without a single byte; the pause doubles from 1 s
STALLED_SECONDS = 30.0
_MD5 = re.compile(r'"([0-9a-f]{32})"')  # the ETag of an object that was uploaded to S3 in one piece
Progress = Callable[[str, int, int], None]  # what is done to which archive, bytes so far, bytes in all


def fetch_archive(
    name: str,
    folder: Path,
    progress: Progress,
    *,
    source: str = SOURCE,
    pause: float = 1.0,
    stalled: float = STALLED_SECONDS,
) -> bool:
    """Have one archive's files below a folder.

    Args:
        name: of the archive.
        folder: takes ``listings/`` and ``images/``.
        progress: is told how far it is, often.
        source: URL of the archives' folder.
        pause: seconds before the second try.
        stalled: seconds without a byte after which a connection is given up.

    Returns:
        False if it was there already.

    Raises:
        UserError: it cannot be had, is damaged, or does not fit on the disk.
    """
    done, tar = folder / f"{name}.json", folder / name
    if done.is_file():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    url = f"{source.rstrip('/')}/{name}"
    if not tar.is_file():
        _download(url, tar, progress, pause, stalled)
    version = read_json(tar.with_name(f"{name}.part.json")) or {}
    _unpack(tar, folder, progress)
    write_json(done, {"url": url, "bytes": tar.stat().st_size, "etag": version.get("etag", "")})
    tar.unlink()
    tar.with_name(f"{name}.part.json").unlink(missing_ok=True)
    return True


def _download(url: str, target: Path, progress: Progress, pause: float, stalled: float) -> None:
    part, state = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
    failures, total = 0, -1
    with httpx.Client(timeout=stalled, follow_redirects=True) as client:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                total = _go_on(client, url, part, state, progress)
                problem = "the connection was cut" if part.stat().st_size < total else ""
            except httpx.HTTPError as error:
                problem = str(error) or type(error).__name__
            if not problem:
                break
            failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
            if failures >= TRIES:
                raise UserError(f"{url} could not be downloaded: {problem}. The same command goes on where it stopped.")
            time.sleep(min(60.0, pause * 2 ** max(0, failures - 1)))
    etag = (read_json(state) or {}).get("etag", "")
    if (md5 := _MD5.fullmatch(etag)) and _md5(part) != md5[1]:
        part.unlink()
        raise UserError(f"{url} arrived damaged (its MD5 is not {md5[1]}) and was deleted. Run the same command again.")
    part.rename(target)


def _go_on(client: httpx.Client, url: str, part: Path, state: Path, progress: Progress) -> int:
    """Append what is missing, as far as the connection lasts; the size of the whole.

    Raises:
        httpx.HTTPError: the connection failed, or the server may recover.
        UserError: it will not; or the disk is too small.
    """
    known, have = read_json(state) or {}, part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": known["etag"]} if have and known.get("etag") else {}
    with client.stream("GET", url, headers=headers) as reply:
        if reply.status_code == 416 and have == known.get("bytes"):
            return have  # all of it is there
        if reply.status_code == 429 or reply.status_code >= 500:
            raise httpx.HTTPStatusError(f"HTTP {reply.status_code}", request=reply.request, response=reply)
        if reply.status_code not in (200, 206):
            raise UserError(
                f"{url}: the server answered {reply.status_code}. Is this still its address? See docs/abo.md."
            )
        if reply.status_code == 200:  # the beginning, or another version than the one that was begun
            have = 0
        total = have + int(reply.headers.get("Content-Length", -1))
        if total < have:
            raise UserError(
                f"{url}: the server does not say how large it is, so nobody would notice a part that is missing."
            )
        _check_space(part.parent, total - have + total, part.name.removesuffix(".part"))
        write_json(state, {"etag": reply.headers.get("ETag", ""), "bytes": total})
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            for chunk in reply.iter_raw():  # as it comes: of a larger piece, a cut would lose what has arrived
                file.write(chunk)
                have += len(chunk)
                progress(f"downloading {part.name.removesuffix('.part')}", have, total)
        return total


def _check_space(folder: Path, wanted: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise UserError(
            f"{name} needs {wanted / 1e9:.1f} GB in {folder}, packed and unpacked, and {free / 1e9:.1f} GB are free. Name "
            "another folder, or make room."
        )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _unpack(tar: Path, folder: Path, progress: Progress) -> None:
    """Unpack what is not there yet; a file appears whole."""
    size = tar.stat().st_size
    try:
        with tarfile.open(tar) as archive:
            for member in _files(archive):
                target = folder / member.name
                if not (target.is_file() and target.stat().st_size == member.size):
                    member.name = f"{member.name}.part"
                    archive.extract(member, folder, filter="data")
                    (folder / member.name).replace(target)
                progress(f"unpacking {tar.name}", member.offset_data + member.size, size)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{tar} cannot be unpacked ({error}). Delete it and run the same command again.") from error


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in archive if member.isfile())
