"""What reaches the disk: files that appear whole or not at all, their hashes, and folders that one program writes."""

import errno
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import IO, Any

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LOCK_NAME = ".lock"  # left behind empty: removing it would open a gap between two who wait for it


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_finished(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, so that it survives a crash of the machine whole or not at all."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def temporary_for(path: Path) -> Path:
    """Where to write what will become `path`: beside it, hidden, a name that nobody else has on any machine."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = temporary_for(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        name_finished(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(values, indent=2) + "\n")


def lock_folder(folder: Path, key: str = "output_dir", user: str = "run") -> IO[str]:
    """An open file that marks the folder as in use until it is closed, or this process ends in whatever way.

    Args:
        folder: made if it is not there.
        key: what the user calls the folder, for messages.
        user: what else may hold it, for messages.
    """
    import fcntl  # not on Windows, where the rest of this file works

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_NAME).open("w")
    except OSError as error:
        raise ValueError(f"{key} {folder} cannot be written ({error.strerror}); choose another.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ValueError(f"{key} {folder} is in use by another {user}; wait for it, or choose another.") from None
    except OSError as error:
        lock.close()
        raise ValueError(
            f"{key} {folder} is on a file system without locks ({error.strerror}), which keep two {user}s from "
            "writing to one folder; choose a folder elsewhere, or have it mounted with them (Lustre: flock)."
        ) from None
    os.register_at_fork(after_in_child=lock.close)  # worker processes outlive a killed run by seconds
    return lock
