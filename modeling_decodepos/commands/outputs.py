"""Whether what a command is to write can be written: found before its work, not after it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path


def refuse_unwritable(output: Path, *, folder: bool = False, flag: str = "--output") -> None:
    """Raises ValueError where no file, or no `folder`, can be written; makes the folders above it."""
    try:
        exists = os.path.lexists(output) if output.is_symlink() else _exists(output)
        if exists and folder != output.is_dir():
            raise OSError(errno.EEXIST, f"expected a {'folder' if folder else 'file'}, there is something else")
        place = output if folder and exists else output.parent
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"{flag} {output} cannot be written ({error.strerror}). Give another place.") from error


def _exists(output: Path) -> bool:
    try:
        output.stat()
    except FileNotFoundError:
        return False
    return True
