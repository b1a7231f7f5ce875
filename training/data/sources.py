"""Where images and their regions come from: Parquet in our layout, or a plain folder of pictures.

`open_images` looks at what is there and returns an `ImageSource`, which is all that the rest of the data path knows.
Regions come from a column of the data or are drawn on the fly, by the class-free providers of `dataset_scripts`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_scripts.build.parquet import MANIFEST_NAME, data_sha256, load_manifest
from dataset_scripts.pictures.listing import SUFFIXES, files_sha256, is_picture, walk
from dataset_scripts.proposals import propose
from modeling_decodepos.data.schema import xywh_to_unit_xyxy
from training.data.decoding import BrokenImage, decode_image, read_size
from training.data.randomness import Purpose, stream
from training.errors import UnusableData

# A few slips of the hand are left out and counted; where more boxes make no sense, they are written in another way.
MOST_UNUSABLE_BOXES = 0.01

# Region sources that look at no annotation.
DRAWN = {
    "random": "random boxes, drawn anew in every epoch",
    "grid": "the cells of a 2 x 2, a 3 x 3 and a 4 x 4 grid",
}
COLUMNS = {"regions": "proposals (column `regions`)", "objects": "annotations (column `objects`)"}
_PER_BOX = ("bbox", "category", "iscrowd", "area")
_BOXES = pa.list_(pa.list_(pa.float32()))
_LAYOUT = "The expected layout is in modeling_decodepos/data/schema.py."


class NoSuchSplit(ValueError):
    """The data have no split of that name."""


class ImageSource(Protocol):
    """A split of a data set: pixels and regions by index."""

    name: str  # for messages
    split: str
    region_source: str  # of `boxes`: a key of `COLUMNS` or of `DRAWN`
    seed: int  # of drawn regions

    @property
    def fingerprint(self) -> str:
        """What tells these images from others, for run.json."""
        ...

    def __len__(self) -> int: ...

    def image_id(self, index: int) -> str:
        """A name that is unique in the split."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of `pixels(index)`, without decoding them; `BrokenImage` where they cannot be told."""
        ...

    def pixels(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB; `BrokenImage` where they cannot be read."""
        ...

    def boxes(self, index: int, epoch: int) -> np.ndarray:
        """(R, 4) float64 regions in an epoch, xyxy in [0, 1]."""
        ...


def open_images(
    path: str | Path, split: str = "train", region_source: str = "auto", seed: int = 0, strict_jpeg: bool = True
) -> ImageSource:
    """The images of a folder (Parquet, or plain pictures, which are all "train") or of a Hub id.

    Regions come from a key of `COLUMNS` or `DRAWN`, or "auto": proposals, else annotations; plain pictures: random.
    What is not there, or not as it is needed, is a FileNotFoundError or a ValueError.
    """
    folder = Path(path)
    if folder.is_dir():
        found = list(walk(folder))
        if not any(name.endswith(".parquet") for name, _ in found):
            return FolderImages(folder, split, region_source, seed, found, strict_jpeg)
    elif folder.exists():
        raise FileNotFoundError(f"data: {path} is a file; give the folder that holds it.")
    # What does not exist can be a Hub id, ORG/NAME; data/scenes is one of ours.
    elif folder.is_absolute() or str(path).count("/") != 1 or str(path).startswith((".", "data/")):
        make = f"Make it with:\n  python -m dataset_scripts.prepare scenes --output {path}"
        other = "Give a folder of pictures, or a folder or Hub id in the layout of modeling_decodepos/data/schema.py."
        raise FileNotFoundError(f"data: no folder at {path}. {make if folder.name == 'scenes' else other}")
    rows = load_split(path, split)
    images = ParquetImages(rows, str(path), split, region_source, seed, strict_jpeg=strict_jpeg)
    images.check_boxes()
    return images


def describe_regions(chosen: str, asked: str) -> str:
    """Where regions come from, and who chose that, for people."""
    what = (COLUMNS | DRAWN)[chosen]
    if asked != "auto":
        return what
    why = "plain images have no others" if chosen in DRAWN else "the first that the data has"
    return f"{what}: region_source is auto, {why}"


def draw_boxes(provider: str, size: tuple[int, int], seed: int, *place: int) -> np.ndarray:
    """(R, 4) unit xyxy regions for an image's height and width, from a key of `DRAWN`, at (epoch, index, …)."""
    height, width = size
    boxes, _ = propose(provider, width, height, [], stream(seed, Purpose.REGIONS, *place))
    return _to_unit(boxes, size)


def _to_unit(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(R, 4) unit xyxy boxes from xywh in pixels, clipped to the image."""
    height, width = size
    return np.asarray(xywh_to_unit_xyxy(boxes, width, height), dtype=np.float64).clip(0.0, 1.0)


# ------------------------------------------------------------------------------------------------------------ Parquet


class ParquetImages:
    """Rows in the layout of `modeling_decodepos.data.schema`; boxes and sizes are read without the images' bytes."""

    def __init__(
        self,
        rows: datasets.Dataset,
        path: str,
        split: str,
        region_source: str = "auto",
        seed: int = 0,
        place: tuple[int, ...] = (),
        strict_jpeg: bool = True,
    ):
        self.name, self.split, self.seed, self._strict_jpeg = f"{path} [{split}]", split, seed, strict_jpeg
        self.unusable_boxes = 0  # as `check_boxes` found
        self._place = place  # of these rows in a stream: random boxes depend on it
        if not len(rows):
            raise ValueError(f"{self.name} holds no image.")
        self.rows = rows
        self._path = path
        self.region_source = choose_region_source(rows, region_source, self.name)
        height, width = (
            rows.data.column(name).fill_null(0).to_numpy().astype(np.int32) for name in ("height", "width")
        )
        self._sizes = np.stack([height, width], axis=1)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> str:
        """The data set's own manifest hash where it has one."""
        return manifest_fingerprint(self._path) or f"datasets fingerprint {self.rows._fingerprint}"

    def image_id(self, index: int) -> str:
        """The row's `image_id`, or its number."""
        known = self.rows.data.column("image_id")[index].as_py() if "image_id" in self.rows.column_names else None
        return f"row-{index}" if known is None else str(known)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width as the columns say."""
        height, width = self._sizes[index]
        if height < 1 or width < 1:
            raise BrokenImage(self.image_id(index), f"has width {width} and height {height} in its columns")
        return int(height), int(width)

    def pixels(self, index: int) -> np.ndarray:
        """The decoded image."""
        size = self.size(index)
        encoded = self.rows.data.column("image")[index].as_py() or {}
        return decode_image(encoded.get("bytes"), self.image_id(index), size, self._strict_jpeg)

    def boxes(self, index: int, epoch: int) -> np.ndarray:
        """Boxes of the region column, those of crowds and unusable ones left out, or drawn ones."""
        size = self.size(index)
        if self.region_source in DRAWN:
            return draw_boxes(self.region_source, size, self.seed, epoch, index, *self._place)
        boxes, used = self._stored_boxes(index)
        return _to_unit(boxes[used], size)

    def _stored_boxes(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(R, 4) float32 boxes as the region column has them, and (R,) flags of those that are regions."""
        regions = self.rows.data.column(self.region_source).slice(index, 1).chunk(0)
        boxes, _, used = self._read_boxes(regions, index)
        if self.region_source == "objects" and (crowd := _listed(regions[0], "iscrowd")):
            used &= ~np.asarray(crowd, dtype=bool)  # a crowd is no single region
        return boxes, used

    def _read_boxes(self, regions: pa.StructArray, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, 4) float32 boxes of rows from number `first` on, (N,) the row of each, and (N,) which are usable."""
        lists = regions.flatten()[regions.type.get_field_index("bbox")]
        if not lists.type.equals(_BOXES):  # another kind of list or number, or nothing but nulls
            lists = lists.cast(_BOXES, safe=False)
        boxes = lists.flatten()
        counts, lengths = (pc.list_value_length(part).fill_null(0).to_numpy() for part in (lists, boxes))
        owners = np.repeat(np.arange(first, first + len(lists)), counts)
        if len(wrong := owners[lengths != 4]):
            own = lengths[owners == wrong[0]]
            raise UnusableData(
                f"{self.name}, image {self.image_id(int(wrong[0]))}: {self.region_source}.bbox holds {len(own)} boxes "
                f"with {own.sum()} numbers; expected x, y, width, height for each."
            )
        values = boxes.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, 4)
        return values, owners, usable_boxes(values, self._sizes[owners])

    def check_boxes(self) -> None:
        """Count the boxes of the region column that are no regions, in `unusable_boxes`; `boxes` leaves them out.

        More than slips are a ValueError.
        """
        if self.region_source in DRAWN:
            return
        if self.region_source == "objects":
            self.check_objects()
        seen, example, start = 0, "", 0
        for chunk in self.rows.data.column(self.region_source).chunks:
            boxes, owners, used = self._read_boxes(chunk, start)
            start += len(chunk)
            sizes = self._sizes[owners]
            wrong = np.flatnonzero((sizes > 0).all(1) & ~used)  # images without a size are broken anyway
            if len(wrong) and not example:
                (height, width), owner = sizes[wrong[0]], int(owners[wrong[0]])
                example = f"{boxes[wrong[0]].tolist()} of image {self.image_id(owner)}, {width} x {height} pixels"
            self.unusable_boxes += len(wrong)
            seen += len(boxes)
        if self.unusable_boxes > MOST_UNUSABLE_BOXES * seen:
            raise ValueError(
                f"{self.name}: {self.unusable_boxes} of {seen} boxes in column {self.region_source} are no regions, "
                f"such as {example}. Expected x, y, width, height in pixels, sides of at least 1, at least half of it "
                "in the image. Mend the column, or do without: --region_source random."
            )

    def check_objects(self) -> None:
        """Raises ValueError where lists of `objects` differ in length, or a category is none of the named classes."""
        start, names = 0, class_names(self)
        for chunk in self.rows.data.column("objects").chunks:
            lists = {
                field.name: part
                for field, part in zip(chunk.type, chunk.flatten(), strict=True)
                if field.name in _PER_BOX and not pa.types.is_null(field.type)
            }
            for name, part in lists.items():
                if not _is_list(part.type) or (name == "iscrowd" and not _is_number(part.type.value_type)):
                    raise ValueError(
                        f"{self.name}: column objects has {name} as {part.type}; expected a list with one entry per "
                        f"box. {_LAYOUT}"
                    )
            lengths = {name: pc.list_value_length(part).fill_null(0).to_numpy() for name, part in lists.items()}
            boxes = lengths.get("bbox", np.zeros(len(chunk), dtype=int))
            # A list that is empty or null is one that nobody made.
            wrong = np.any([(own > 0) & (own != boxes) for own in (boxes, *lengths.values())], axis=0)
            if wrong.any():
                row = int(wrong.argmax())
                found = {name: int(own[row]) for name, own in lengths.items() if own[row]}
                raise ValueError(
                    f"{self.name}, image {self.image_id(start + row)}: the lists of objects differ in length: {found};"
                    " expected one entry per box. `python -m dataset_scripts.prepare check DIR` lists such rows."
                )
            if names is not None and "category" in lists:
                known = lists["category"].flatten().to_numpy(zero_copy_only=False)
                outside = np.flatnonzero(known >= len(names))  # one below 0 is unknown
                if len(outside):
                    row = start + int(np.repeat(np.arange(len(chunk)), lengths["category"])[outside[0]])
                    raise ValueError(
                        f"{self.name}, image {self.image_id(row)}: objects.category holds {known[outside[0]]:g}, but "
                        f"there are {len(names)} classes, 0 to {len(names) - 1}."
                    )
            start += len(chunk)

    @property
    def is_annotated(self) -> bool:
        """Whether there are annotations, used as regions or not."""
        return "objects" in self.rows.column_names and _has_boxes(self.rows.data.column("objects"))

    def classes(self, index: int) -> np.ndarray | None:
        """(R,) classes of the annotations that `boxes` gives; None if they are not all known, or others are given."""
        if self.region_source != "objects":
            return None
        known = _listed(self.rows.data.column("objects")[index], "category")
        if not known or any(not isinstance(number, int) or number < 0 for number in known):
            return None
        return np.asarray(known, dtype=np.int64)[self._stored_boxes(index)[1]]


def usable_boxes(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(N,) flags of the (N, 4) xywh pixel boxes with sides of a pixel or more and at least half in the image.

    `size` is height and width of the image, or (N, 2) for each box its own.
    """
    x, y, width, height = boxes.astype(np.float64).T
    with np.errstate(invalid="ignore"):  # infinite ones
        seen_width = np.minimum(x + width, size[..., 1]) - np.maximum(x, 0)
        seen_height = np.minimum(y + height, size[..., 0]) - np.maximum(y, 0)
        half_seen = (seen_width > 0) & (seen_height > 0) & (2 * seen_width * seen_height >= width * height)
    return (width >= 1) & (height >= 1) & half_seen


def _listed(regions: Any, field: str) -> list[Any]:
    """A field of an Arrow struct of lists; an empty list if there is no such field, or a null."""
    has_field = regions.is_valid and regions.type.get_field_index(field) >= 0
    return regions[field].as_py() or [] if has_field else []


def load_split(path: str | Path, split: str) -> datasets.Dataset:
    """The rows of one split, with images left as bytes."""
    try:
        rows = datasets.load_dataset(str(path), split=split)
    except datasets.exceptions.DatasetGenerationError as error:
        problem = _find_problem(Path(path)) or str(error.__cause__ or error)
        raise ValueError(f"{path} [{split}] cannot be read: {problem}") from error
    except ValueError as error:
        if "Unknown split" in str(error):
            raise NoSuchSplit(f"{path} [{split}]: {error}") from error
        problem = "holds no image" if "corresponds to no data" in str(error) else f"cannot be read: {error}"
        raise ValueError(f"{path} [{split}] {problem}") from error
    check_columns(rows.data.schema, f"{path} [{split}]")
    return rows.cast_column("image", datasets.Image(decode=False))


def _find_problem(folder: Path) -> str:
    """What is wrong with the first damaged Parquet file of a folder; empty where all are in order."""
    for file in sorted(folder.rglob("*.parquet")):
        try:
            held = pq.ParquetFile(file)
            if not held.metadata.num_rows:
                return f"{file} holds no row, which `datasets` does not take. Delete it, or write its rows."
            check_columns(held.schema_arrow, str(file))
        except (ValueError, OSError) as error:
            return str(error) if str(file) in str(error) else f"{file}: {error}"
    return ""


def check_columns(schema: pa.Schema, where: str) -> None:
    """Refuse rows without images or sizes, or with something else in their columns."""
    missing = {"image", "width", "height"} - set(schema.names)
    if missing:
        raise ValueError(
            f"{where} lacks the columns {', '.join(sorted(missing))}; it has {', '.join(schema.names)}. {_LAYOUT}"
        )
    for name in ("width", "height"):
        if not pa.types.is_integer(kind := schema.field(name).type):
            raise ValueError(f"{where}: column {name} is {kind}; expected whole numbers. {_LAYOUT}")
    kind = schema.field("image").type
    if not (kind.get_field_index("bytes") >= 0 if pa.types.is_struct(kind) else _is_text(kind)):
        raise ValueError(f"{where}: column image is {kind}; expected encoded files, a struct with `bytes`. {_LAYOUT}")


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string))


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_number(kind: pa.DataType) -> bool:
    """Whether values are numbers, flags or absent."""
    tests = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
    return any(test(kind) for test in tests)


def _holds_boxes(kind: pa.DataType) -> bool:
    """Whether a column's type is a struct with lists of lists of numbers; one that is always empty has no type."""
    if not (pa.types.is_struct(kind) and kind.get_field_index("bbox") >= 0):
        return False
    found = kind.field("bbox").type
    for _ in range(2):
        if not _is_list(found):
            return bool(pa.types.is_null(found))
        found = found.value_type
    return not pa.types.is_boolean(found) and _is_number(found)


def choose_region_source(rows: datasets.Dataset, region_source: str, name: str) -> str:
    """Where regions come from, "auto" decided: a column of the rows, or a provider that needs none."""
    if region_source in DRAWN:
        return region_source
    candidates = list(COLUMNS) if region_source == "auto" else [region_source]
    for column in candidates:
        if column not in rows.column_names:
            continue
        kind = rows.data.column(column).type
        if not _holds_boxes(kind):
            raise ValueError(
                f"{name}: column {column} is {kind}; expected a struct of lists with `bbox`, numbers in fours. "
                f"{_LAYOUT}"
            )
        if region_source != "auto" or _has_boxes(rows.data.column(column)):
            return column
    raise ValueError(
        f"{name} has no regions: looked for {' and '.join(candidates)} among its columns, which are "
        f"{', '.join(rows.column_names)}. --region_source random draws boxes instead."
    )


def _has_boxes(column: pa.ChunkedArray) -> bool:
    boxes = (chunk.flatten()[chunk.type.get_field_index("bbox")] for chunk in column.chunks)
    return any(len(lists.flatten()) > 0 for lists in boxes if not pa.types.is_null(lists.type))


def manifest_fingerprint(path: str) -> str | None:
    """The hash of all files of a folder that dataset_scripts built, None for other data."""
    return data_sha256(load_manifest(Path(path))) if (Path(path) / MANIFEST_NAME).is_file() else None


# ------------------------------------------------------------------------------------------------------- plain folder


class FolderImages:
    """The pictures of a folder and its subfolders, in the order of their relative paths; they are all of "train".

    Files of other kinds, hidden files and hidden folders do not count. The fingerprint is the sha256 over the relative
    paths and the sizes of the files, not over their bytes. Nor over their times: copying pictures changes those.
    What it misses is a picture that was replaced by one of as many bytes.
    """

    def __init__(
        self,
        folder: Path,
        split: str = "train",
        region_source: str = "auto",
        seed: int = 0,
        found: list[tuple[str, int]] | None = None,
        strict_jpeg: bool = True,
    ):
        self.folder, self.split, self.seed, self._strict_jpeg = folder, split, seed, strict_jpeg
        self.name = f"{folder} [{split}]"
        files = sorted(found if found is not None else walk(folder))
        pictures = [(name, size) for name, size in files if is_picture(name)]
        if not pictures:
            others = ", ".join(name for name, _ in files[:5]) or "no file at all"
            raise FileNotFoundError(
                f"data: {folder} holds no Parquet file and no picture ({', '.join(sorted(SUFFIXES))}); it has "
                f"{others}{' …' * (len(files) > 5)}."
            )
        if split != "train":
            raise NoSuchSplit(
                f"{folder} is a folder of plain images: it has the split 'train' only, not {split!r}. Give the folder "
                "of the images you mean as data."
            )
        if region_source in COLUMNS:
            raise ValueError(
                f"region_source is {region_source!r}, but {folder} is a folder of plain images without annotations; "
                f"expected auto, {' or '.join(DRAWN)}."
            )
        self.region_source = "random" if region_source == "auto" else region_source
        # One Arrow array instead of a million strings: worker processes share it.
        self._paths = pa.array([os.fsencode(name) for name, _ in pictures], pa.binary())
        self.fingerprint = f"sha256 of relative paths and file sizes {files_sha256(pictures)}"
        self._refuse_if_nothing_opens()

    def __len__(self) -> int:
        return len(self._paths)

    def image_id(self, index: int) -> str:
        """The file's path in the folder."""
        return self._paths[index].as_py().decode("utf-8", "backslashreplace")

    def size(self, index: int) -> tuple[int, int]:
        """Height and width from the file's header."""
        return read_size(self._path(index), self.image_id(index))

    def pixels(self, index: int) -> np.ndarray:
        """The decoded picture."""
        try:
            data = Path(self._path(index)).read_bytes()
        except OSError as error:
            raise BrokenImage(self.image_id(index), f"cannot be read: {error.strerror}") from None
        if not data:
            raise BrokenImage(self.image_id(index), "is an empty file")
        return decode_image(data, self.image_id(index), strict=self._strict_jpeg)

    def boxes(self, index: int, epoch: int) -> np.ndarray:
        """Drawn boxes: a plain folder knows of no others."""
        return draw_boxes(self.region_source, self.size(index), self.seed, epoch, index)

    def _path(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self._paths[index].as_py()))

    def _refuse_if_nothing_opens(self) -> None:
        broken: list[BrokenImage] = []
        for index in range(len(self)):
            try:
                self.size(index)
                return
            except BrokenImage as error:
                broken.append(error)
        raise ValueError(f"none of the {len(self)} pictures in {self.folder} can be read, such as:\n  {broken[0]}")


def class_names(source: ImageSource) -> tuple[str, ...] | None:
    """Names of the classes, where the data set has them."""
    if not isinstance(source, ParquetImages):
        return None
    category = (source.rows.features.get("objects") or {}).get("category")
    names = getattr(getattr(category, "feature", None), "names", None)
    return None if names is None else tuple(names)
