"""The instance masks of Open Images, one PNG each, as one map of classes per image.

A folder `masks/` with the official zips (`train-masks-0.zip` …), or with the PNG files in it or below it. Only files
whose names are in the mask table are opened, and a file taken out of a zip is named by the table, not by the zip.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from modeling_decodepos.data.pictures import broken_if_it_fails, read_size
from modeling_decodepos.data.schema import SEGMENTATION_IGNORE

from ...files import whole_file
from .tables import MASK_NAME

MOST_MASK_BYTES = 16 << 20


def locate_masks(folder: Path, names: Sequence[str], cache: Path) -> dict[str, Path]:
    """The PNG file of every mask; those in zips are taken out into `cache` once. None may be missing."""
    if wrong := [name for name in names if not MASK_NAME.fullmatch(name)]:
        raise ValueError(f"{wrong[0]!r} is no name of a mask; nothing was opened.")
    wanted = set(names)
    found = {path.name: path for place in (cache, folder) for path in place.rglob("*.png") if path.name in wanted}
    for archive in tqdm(sorted(folder.rglob("*.zip")), desc="masks", unit=" zips"):
        if len(found) < len(wanted):
            _take_out(archive, wanted - set(found), cache, found)
    if missing := sorted(wanted - set(found)):
        raise ValueError(
            f"{folder}: {len(missing):,} of {len(wanted):,} masks are not there, such as {missing[0]}. Put the zips "
            "(openimages/v5/train-masks/train-masks-0.zip to -f.zip, validation-masks likewise) into it, or build "
            "without masks: --without masks."
        )
    return found


def _take_out(archive: Path, wanted: set[str], cache: Path, found: dict[str, Path]) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                name = entry.filename.rpartition("/")[2]
                if name not in wanted or entry.is_dir():
                    continue
                if entry.file_size > MOST_MASK_BYTES:
                    raise ValueError(
                        f"{archive}: {entry.filename} unpacks to {entry.file_size:,} bytes; no mask does."
                    )
                path = cache / name[:2] / name
                with whole_file(path, sync=False) as temporary:
                    temporary.write_bytes(file.read(entry))
                found[name] = path
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is no whole zip file ({error}). Fetch it again.") from error


def mask_aspect(path: Path) -> float:
    """Width / height of a mask, from its header."""
    height, width = read_size(path, str(path), formats=("PNG",))
    return width / height


def class_map(masks: Sequence[tuple[Path, int]], width: int, height: int) -> NDArray[np.uint8]:
    """(height, width) map: k = category k - 1, 255 where no mask is, for masks do not cover all there is.

    Masks come with their categories, largest box first, so that a smaller object lies over a larger one. A mask of
    another size than the image is resized to it, nearest pixel.
    """
    result = np.full((height, width), SEGMENTATION_IGNORE, np.uint8)
    for path, category in masks:
        with broken_if_it_fails(str(path), "mask"), Image.open(path, formats=("PNG",)) as image:
            mask = image.convert("L")
        if mask.size != (width, height):
            mask = mask.resize((width, height), Image.Resampling.NEAREST)
        result[np.asarray(mask) > 0] = category + 1
    return result
