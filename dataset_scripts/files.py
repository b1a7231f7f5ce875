"""What reaches the disk: files that appear whole or not at all, their hashes, and folders that one program writes."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LOCK_NAME = ".lock"  # left behind empty


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path, sync: bool = True) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well and is removed otherwise; makes the folder.

    Readers see an older file of this name, or the whole new one. `sync`, which costs milliseconds per file, makes it
    survive a crash of the machine as well; do without for what is made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, hidden, and a name that nobody else has on any machine.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if sync:
            sync_to_disk(temporary)
        temporary.replace(path)
        if sync and os.name == "posix":  # elsewhere a folder cannot be opened
            sync_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(folder: Path, name: str = "*") -> list[Path]:
    """What a process that was killed in `whole_file` left beside files of this name, which may be a pattern."""
    return list(folder.glob(f".{name}.*.tmp"))


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Removes those; only whoever has the folder to itself may."""
    for path in unfinished(folder, name):
        path.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Makes a file, or the names in a folder, survive a crash of the machine."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; makes its folder."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all; makes its folder."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; ValueError with the file's name where it holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested without end
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected an object.")
    return values


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one per line; a crash may have cut it off: nothing counts from what is none on."""
    lines: list[dict[str, Any]] = []
    if not path.is_file():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def lock_folder(
    folder: Path, key: str = "output_dir", user: str = "run", wait: bool = False, name: str = LOCK_NAME
) -> IO[str]:
    """An open file that marks the folder as in use until it is closed, or this process ends in whatever way.

    The folder is made if it is not there. Messages speak of it as `key`, and of what else may hold it as a `user`.
    `wait` waits until it is free, instead of an error.
    """
    path = folder / name
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except OSError as error:
            raise ValueError(f"{key} {folder} cannot be written ({error.strerror}); choose another.") from None
        try:
            _lock(lock, f"{key} {folder} is in use by another {user}", wait)
        except OSError as error:
            lock.close()
            raise ValueError(
                f"{key} {folder} is on a file system without locks ({error.strerror}), which keep two {user}s from "
                "writing to one folder; choose a folder elsewhere, or have it mounted with them (Lustre: flock)."
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                os.register_at_fork(after_in_child=lock.close)  # worker processes outlive a killed run by seconds
                return lock
        lock.close()  # whoever held it has removed the folder since: try again


def _lock(file: IO[str], in_use: str, wait: bool) -> None:
    import fcntl  # not on Windows, where the rest of this file works

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            file.close()
            raise ValueError(f"{in_use}; wait for it, or choose another.") from None
        print(f"{in_use}; waiting.")
        fcntl.flock(file, fcntl.LOCK_EX)
