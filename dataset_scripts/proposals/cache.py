"""Regions kept by what they depend on: the recipe of the provider, the bytes of the image, its size as the row has it.

    FOLDER/<hash of the recipe>/<two digits>/<hash of the image>-<size>    sha256 of the rest, then a .npy array

The size may be that of the stored pixels or of the upright ones, and boxes are in the pixels of one of them.

Any number of processes may share a folder: a file appears under its name only when it is whole, and two that find the
same thing write the same bytes. A damaged file counts as absent and is replaced.
"""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_file
from .inputs import Regions


def cached(
    folder: Path, recipe: Any, image: bytes, size_px: tuple[int, int], compute: Callable[[], Regions]
) -> Regions:
    """What `compute` gives, from the folder where it is there already."""
    kind = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    name = "{}-{}x{}".format(hashlib.sha256(image).hexdigest(), *size_px)
    path = folder / kind / name[:2] / name
    known = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(known[32:]).digest() == known[:32]:
        columns = np.load(io.BytesIO(known[32:]), allow_pickle=False)
        return columns[:, :4], columns[:, 4] if columns.shape[1] == 5 else None
    boxes, scores = compute()
    file = io.BytesIO()
    np.save(file, boxes if scores is None else np.concatenate([boxes, scores[:, None]], axis=1))
    with whole_file(path, sync=False) as temporary:
        temporary.write_bytes(hashlib.sha256(file.getvalue()).digest() + file.getvalue())
    return boxes, scores
