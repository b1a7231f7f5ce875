"""A subset of COCO that a list names: ids of images for each split that is written.

    {"train": [25, 30], "validation": [9, 36]}

An image may come from any annotation file of the source: the list alone says which split it goes to.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...build.parquet import Row, RowMaker
from ...build.records import Records

SPLITS = ("train", "validation", "test")
_EXPECTED = 'expected the COCO ids of each split: {"train": [25, 30], "validation": [9, 36]}'

Ids = dict[str, list[int]]
"""Ids of the images of each split, rising."""


def load_ids(path: Path) -> Ids:
    """The ids in a list, train before validation before test."""
    if not path.is_file():
        raise ValueError(f"--ids {path} is {'no file' if path.exists() else 'not there'}, {_EXPECTED}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # of bytes that are no text, too
        raise ValueError(f"--ids {path} is no valid JSON ({error}), {_EXPECTED}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"--ids {path} holds {type(content).__name__}, {_EXPECTED}.")
    if unknown := sorted(content.keys() - set(SPLITS)):
        raise ValueError(f"--ids {path} has the key {unknown[0]!r}, expected splits only: {', '.join(SPLITS)}.")
    ids = {split: _checked(content[split], f"--ids {path}, {split}") for split in SPLITS if split in content}
    if not ids:
        raise ValueError(f"--ids {path} names no split, {_EXPECTED}.")
    if twice := _repeated(number for of_split in ids.values() for number in of_split):
        raise ValueError(f"--ids {path}: {_some(twice)} in two splits; an image belongs to one.")
    return ids


def ids_sha256(ids: Ids) -> str:
    """One hash over the ids of all splits; how the list was written does not count."""
    return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()


def check_known(ids: Ids, files: Mapping[str, Iterable[int]]) -> None:
    """Refuses ids of which no annotation file has an image, or more than one; `files` has the ids of each by name."""
    known = Counter(number for of_file in files.values() for number in of_file)
    wanted = [number for of_split in ids.values() for number in of_split]
    if unknown := sorted(number for number in wanted if number not in known):
        raise ValueError(
            f"{len(unknown):,} of the {len(wanted):,} ids in --ids are in no annotation file: {_first(unknown)}. "
            f"Looked into {', '.join(files)}; COCO 2017 needs instances_train2017.json and instances_val2017.json."
        )
    if twice := sorted(number for number in wanted if known[number] > 1):
        raise ValueError(f"--ids: {_some(twice)} in more than one of {', '.join(files)}, expected images of one file.")


def place_rows(ids: Ids, parts: Mapping[str, Records]) -> dict[str, list[tuple[str, int]]]:
    """The rows of each split by rising id, each as a part of the source and the number of its record there.

    Records begin with the id of the image. Images that have none, because their picture is missing, are left out.
    """
    places = {records[k][0]: (part, k) for part, records in parts.items() for k in range(records.count)}
    rows = {
        split: [places[image_id] for image_id in of_split if image_id in places] for split, of_split in ids.items()
    }
    if empty := [split for split in rows if not rows[split]]:
        raise ValueError(
            f"None of the {len(ids[empty[0]]):,} pictures that --ids names for {empty[0]} is there. Download them."
        )
    return rows


def listed_row(split: str, number: int, rows: Mapping[str, Records], make_row: RowMaker) -> Row:
    """Row `number` of a split, made by the part of the source that has it."""
    return make_row(*rows[split][number])


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The members of a JSON object; of two with one name, `json` would silently drop the first."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def _checked(values: object, where: str) -> list[int]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where} is {str(values)[:40]}, expected a list of at least one id.")
    if wrong := [value for value in values if type(value) is not int]:  # True is an int too
        raise ValueError(f"{where} holds {json.dumps(wrong[0])[:40]}, expected whole numbers: COCO's ids of images.")
    if twice := _repeated(values):
        raise ValueError(f"{where}: {_some(twice)} there more than once.")
    return sorted(values)


def _repeated(values: Iterable[int]) -> list[int]:
    return sorted(value for value, count in Counter(values).items() if count > 1)


def _some(ids: Sequence[int]) -> str:
    """Subject and verb: "1 id (5) is", "7 ids (1, 2, 3, …) are"."""
    return f"{len(ids):,} ids ({_first(ids)}) are" if len(ids) > 1 else f"1 id ({ids[0]}) is"


def _first(ids: Sequence[int]) -> str:
    return ", ".join([*map(str, ids[:3]), *(["…"] if len(ids) > 3 else [])])
