"""The picture files of a folder: which there are, which split each belongs to, and names that stay in the folder."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

DEFAULT_VALIDATION_SHARE = 0.05


def walk(folder: str | Path, inside: str = "", above: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    """Relative path, with forward slashes, and size of every file that is not hidden.

    Links are followed. One to nowhere that is named like a picture counts as one, of no bytes: it cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above:  # a link back to where we come from
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not os.path.exists(entry):  # or it leads to itself
                if is_picture(entry.name):
                    yield inside + entry.name, 0
            elif entry.is_dir():
                yield from walk(entry.path, f"{inside}{entry.name}/", (*above, real))
            elif entry.is_file():
                yield inside + entry.name, entry.stat().st_size


def list_pictures(folder: Path) -> dict[str, int]:
    """Relative path and size of every picture in a folder and its subfolders, in the order of the paths."""
    check_folder(folder)
    files = sorted(walk(folder))
    pictures = {name: size for name, size in files if is_picture(name)}
    if not pictures:
        found = f"{len(files)} other files, such as {files[0][0]}" if files else "no file at all"
        raise ValueError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))}); it holds {found}.")
    return pictures


def check_folder(folder: Path) -> None:
    """Refuse a source that is no folder."""
    if not folder.is_dir():
        raise ValueError(f"--source {folder} is {'a file' if folder.exists() else 'not there'}, expected a folder.")


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def files_sha256(files: Iterable[tuple[str, int]]) -> str:
    """One hash over relative paths and sizes: it tells a changed folder from the same one without reading it."""
    lines = (b"%b\0%d\n" % (os.fsencode(name), size) for name, size in files)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def path_inside(name: object, where: str) -> str:
    """A relative path as found in a file of annotations, with forward slashes; refused if it may leave the folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{where}: file name {name!r}, expected a relative path.")
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    if windows.drive or windows.root or posix.is_absolute() or ".." in (*windows.parts, *posix.parts):
        raise ValueError(f"{where}: file name {name!r} leaves the folder; only paths inside it are read.")
    return posix.as_posix()


def split_by_name(names: Sequence[str], share: float) -> dict[str, list[str]]:
    """The pictures of "train" and of "validation", each in the order given.

    Where one belongs depends on its path alone: new pictures do not move old ones.
    """
    if not 0 <= share < 1:
        raise ValueError(f"--validation_share is {share}, expected 0 or more and less than 1.")
    splits: dict[str, list[str]] = {"train": [], "validation": []}
    for name in names:
        place = int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")
        splits["validation" if place < share * 2**64 else "train"].append(name)
    if not splits["train"]:  # a handful of pictures may all fall on one side
        splits = {"train": splits["validation"], "validation": []}
    return splits
