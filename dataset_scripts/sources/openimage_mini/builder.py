"""OpenImage-MINI, our reconstruction: chosen from the tables of Open Images, photos fetched one by one."""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modeling_decodepos.commands.settings import add_flags, from_values, given, number, read_yaml

from ...build.parquet import DatasetPlan
from ...build.work_folder import WorkFolder, holds_something
from .downloads import Downloader, FetchError, GoneError, Pace
from .index import INDEX_NAME, Index, ids_sha256, index_rows, read_index, write_index
from .masks import locate_masks, mask_aspect
from .photos import IMAGE_URL, Photo, fetch_photos
from .rows import mini_row, save_rows
from .selection import Rule, select
from .tables import (
    check_image_ids,
    id_text,
    read_boxes,
    read_classes,
    read_image_list,
    read_labels,
    read_masks,
    read_parents,
)

HELP = "our reconstruction of OpenImage-MINI, from the tables and photos of Open Images"
METADATA_URL = "https://storage.googleapis.com/openimages"
VERSION = 1  # of what the rule and the rows mean; part of the recipe


class Table(NamedTuple):
    """A file of Open Images."""

    address: str  # below the metadata URL, if it is in the source folder under none of its names
    group: str = ""  # what `--without` calls it; empty if nothing goes without it
    other_name: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """It may have in the source folder."""
        return (Path(self.address).name, *filter(None, [self.other_name]))


TABLES = {
    "classes": Table("v5/class-descriptions-boxable.csv", other_name="oidv7-class-descriptions-boxable.csv"),
    "train boxes": Table("v6/oidv6-train-annotations-bbox.csv", other_name="train-annotations-bbox.csv"),
    "validation boxes": Table("v5/validation-annotations-bbox.csv"),
    "hierarchy": Table("2018_04/bbox_labels_600_hierarchy.json", "hierarchy"),
    "mask classes": Table("v5/classes-segmentation.txt", "mask-classes"),
    "train images": Table("2018_04/train/train-images-boxable-with-rotation.csv", "images"),
    "validation images": Table("2018_04/validation/validation-images-with-rotation.csv", "images"),
    "train masks": Table("v5/train-annotations-object-segmentation.csv", "masks"),
    "validation masks": Table("v5/validation-annotations-object-segmentation.csv", "masks"),
}
LOST = {
    "hierarchy": "classes that contain other classes may be chosen",
    "mask-classes": "classes that have no masks may be chosen",
    "images": "author, licence and addresses of the photos are empty",
    "masks": "there is no `segmentation`",
}
"""What a build lacks without the tables of a group."""
SPLITS = ("train", "validation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `prepare openimage-mini`."""
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        help="folder of the tables; what is absent is fetched. Or a folder that --ids_only wrote. It is only read",
    )
    parser.add_argument(
        "--downloads",
        type=Path,
        help="folder that keeps the tables and photos that are fetched, for other builds "
        "(default: inside OUTPUT, removed when the build is finished)",
    )
    parser.add_argument("--ids_only", action="store_true", help="write ids, boxes and rule, no pixels")
    parser.add_argument("--recipe", type=Path, help="YAML file with keys of the selection rule; flags win over it")
    add_flags(parser, Rule)
    parser.add_argument(
        "--without",
        nargs="*",
        choices=tuple(LOST),
        default=[],
        help="tables to do without; then, " + "; ".join(f"{group}: {lost}" for group, lost in LOST.items()),
    )
    parser.add_argument("--metadata_url", default=METADATA_URL, help="where absent tables come from")
    parser.add_argument(
        "--images", type=Path, help="folder of photos, complete or not; only read (default: SOURCE/images)"
    )
    parser.add_argument("--image_url", default=IMAGE_URL, help="photos are fetched from URL/SPLIT/ID.jpg")
    parser.add_argument(
        "--originals",
        action="store_true",
        help="--image_url serves the photographers' originals: check the MD5 and size of the image list",
    )
    parser.add_argument("--masks", type=Path, help="folder of mask zips or PNG files (default: SOURCE/masks)")
    parser.add_argument("--missing", type=Path, help="leave out the ids in this file, and no others")
    parser.add_argument("--connections", type=number(int, 1, 1000), default=16, help="photos fetched at the same time")
    parser.add_argument(
        "--requests_per_second", type=number(float, 0.01, 10_000), default=50.0, help="at most, over all connections"
    )
    parser.set_defaults(proposals="none")


def open_source(arguments: argparse.Namespace, work: WorkFolder) -> DatasetPlan | None:
    """What `prepare openimage-mini` builds, its photos on disk; None if only ids were asked for, which it wrote."""
    if arguments.connections < 1 or arguments.requests_per_second <= 0:
        raise ValueError("--connections and --requests_per_second must be above 0.")
    for url in (arguments.metadata_url, arguments.image_url):
        if not url.startswith(("https://", "http://")):
            raise ValueError(f"{url!r} is no address, expected http:// or https://.")
    if arguments.ids_only:
        holds_something(arguments.output, (INDEX_NAME,))
    downloader = Downloader(Pace(arguments.requests_per_second))
    folder = work.open(keep=True)
    downloads: Path = arguments.downloads or folder / "downloads"
    source: Path = arguments.source
    masks_folder: Path = arguments.masks or source / "masks"
    with_masks = masks_folder.is_dir() and "masks" not in arguments.without
    index = _open_index(arguments, folder, downloads, downloader, with_masks)
    if arguments.ids_only:
        _write_ids(arguments.output, index, arguments.overwrite)
        return None

    missing = _read_missing(arguments.missing) if arguments.missing else set()
    names = [name for table in index.splits.values() for name in pc.list_flatten(table["masks"]).to_pylist()]
    masks = locate_masks(masks_folder, names, folder / "masks") if with_masks and names else None
    photos = [path.absolute() for path in (arguments.images or source / "images", downloads / "images")]
    wanted = [photo for photo in _photos(index, masks, arguments.originals) if photo.image_id not in missing]
    gone = fetch_photos(wanted, photos, arguments.image_url, downloader, arguments.connections)
    if gone and arguments.missing:
        raise ValueError(
            f"{len(gone)} photos are gone that {arguments.missing} does not list, such as {min(gone)}, so that build "
            "cannot be repeated from this address. Add them to the file, or build without --missing."
        )
    return _plan(index, missing | gone, masks, photos, folder)


# -------------------------------------------------------------------------------------------------------- the choice


def _open_index(
    arguments: argparse.Namespace, work: Path, downloads: Path, downloader: Downloader, with_masks: bool
) -> Index:
    values = (read_yaml(arguments.recipe) if arguments.recipe else {}) | given(arguments, Rule)
    if (arguments.source / INDEX_NAME).is_file():
        if values:
            raise ValueError(
                f"{arguments.source} holds ids that are chosen already; {', '.join(values)} cannot change them. "
                "Give a folder of tables as --source, or leave these keys out."
            )
        return read_index(arguments.source)
    place = f"the selection rule of {arguments.recipe}" if arguments.recipe else "the selection rule"
    rule = from_values(Rule, values, place)
    folders, without = (arguments.source, downloads), set(arguments.without)
    tables = _collect_tables(folders, arguments.metadata_url, without, with_masks, downloader)
    state = {name: [path.name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in tables.items()}
    key = json.dumps([VERSION, dataclasses.asdict(rule), state], sort_keys=True)
    folder = work / f"index-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not (folder / INDEX_NAME).is_file():
        write_index(folder, choose(tables, rule))
    return read_index(folder)


def _collect_tables(
    folders: tuple[Path, Path], base_url: str, without: set[str], with_masks: bool, downloader: Downloader
) -> dict[str, Path]:
    """The tables of the source, or else of the downloads, fetched into these if absent; not all that nothing needs."""
    source, downloads = folders
    found: dict[str, Path] = {}
    trouble: list[str] = []
    for name, table in TABLES.items():
        if table.group in without:
            continue
        paths = [folder / file for folder in folders for file in table.names]
        present = [path for path in paths if path.is_file()]
        if len(present) > 1 and present[0].parent == present[1].parent:
            trouble.append(f"{name}: {present[0].name} and {present[1].name} are both there: remove one of them")
        if not present and table.group == "masks" and not with_masks:
            continue  # hundreds of megabytes that would serve for nothing
        path, url = downloads / table.names[0], f"{base_url.rstrip('/')}/{table.address}"
        files = " or ".join(table.names)
        try:
            if not present and trouble:  # nothing will be built: gigabytes can wait, and so need nobody
                downloader.ask(url)
            elif not present:
                downloader.fetch_file(url, path)
            found[name] = present[0] if present else path
        except GoneError as error:
            if not table.group:
                trouble.append(f"{name}: {files}, gone from {url} ({error})")
            else:
                print(f"{name}: not in {source} and gone from {url}; going on without.")
        except FetchError as error:
            hint = f", or say --without {table.group}: {LOST[table.group]}" if table.group else ""
            trouble.append(f"{name}: {files}, not fetched ({error}){hint}")
    if trouble:
        raise ValueError(
            f"{len(trouble)} tables of Open Images cannot be had. Put the files into {source}; where the server did "
            "not answer, the same command may do:\n  " + "\n  ".join(trouble)
        )
    return found


def choose(tables: Mapping[str, Path], rule: Rule) -> Index:
    """Reads the tables and applies the rule."""
    names = read_classes(tables["classes"])
    labels = sorted(names, key=lambda label: names[label])  # of no file's order
    class_index = {label: place for place, label in enumerate(labels)}
    allowed = np.ones(len(labels), bool)
    if "mask classes" in tables:
        masked = read_labels(tables["mask classes"])
        allowed &= [label in masked for label in labels]
    if "hierarchy" in tables:
        parents = read_parents(tables["hierarchy"])
        allowed &= [label not in parents for label in labels]
    boxes, counts = {}, {}
    for split in SPLITS:
        boxes[split], counts[f"{split} boxes"] = read_boxes(tables[f"{split} boxes"], class_index, rule.hand_drawn)
        print(f"{split} boxes: {_in_words(counts[f'{split} boxes'])}")
    selection = select(boxes["train"], boxes["validation"], allowed, [names[label] for label in labels], rule)
    counts["selection"] = selection.counts
    if len(selection.train) < rule.train_images:
        print(f"{len(selection.train):,} training images fulfil the rule, {rule.train_images:,} were asked for.")
    rows = {}
    for split, ids in {"train": selection.train, "validation": selection.validation}.items():
        texts = [id_text(number) for number in ids]
        masks = attribution = None
        if f"{split} masks" in tables:
            masks, unknown = read_masks(tables[f"{split} masks"], texts, class_index)
            counts[f"{split} masks"] = {"listed": sum(map(len, masks)), "unknown class": unknown}
        if f"{split} images" in tables:
            attribution, counts[f"{split} images"] = read_image_list(tables[f"{split} images"], texts)
        rows[split] = index_rows(ids, boxes[split], selection.classes, masks, attribution)
    return Index(
        rule=rule,
        absent=tuple(name for name in TABLES if name not in tables),
        classes=tuple((labels[place], names[labels[place]]) for place in selection.classes),
        counts=counts,
        small=selection.small,
        **rows,
    )


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _write_ids(output: Path, index: Index, overwrite: bool) -> None:
    if (output / INDEX_NAME).is_file() and not overwrite:
        if read_index(output).sha256 == index.sha256:
            print(f"{output} holds these ids: nothing to do.")
            return
        raise ValueError(f"{output} holds other ids. Choose another --output, or write anew with --overwrite.")
    write_index(output, index)
    rows = {split: table.num_rows for split, table in index.splits.items()}
    print(f"{output}: {rows['train']:,} train, {rows['validation']:,} validation ids, hash {index.sha256[:16]}")


# -------------------------------------------------------------------------------------------------------- the photos


def _read_missing(path: Path) -> set[str]:
    try:
        ids = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}), expected one image id per line.") from error
    check_image_ids(pa.array(ids, pa.string()), str(path))
    return set(ids)


def _photos(index: Index, masks: Mapping[str, Path] | None, originals: bool) -> list[Photo]:
    photos = []
    for split, table in index.splits.items():
        for row in table.select(["image_id", "masks", "original_size", "original_md5"]).to_pylist():
            size, md5 = (row["original_size"], row["original_md5"]) if originals else (None, None)
            aspect = mask_aspect(masks[row["masks"][0]]) if masks and row["masks"] else None
            photos.append(Photo(split, row["image_id"], size, md5, aspect))
    return photos


def _plan(
    index: Index, missing: set[str], masks: Mapping[str, Path] | None, photos: Sequence[Path], work: Path
) -> DatasetPlan:
    """The data set of the photos that are there."""
    ids = {split: table["image_id"].to_pylist() for split, table in index.splits.items()}
    left_out = sorted(missing.intersection(ids["train"] + ids["validation"]))
    kept = {
        split: table.filter([image_id not in missing for image_id in ids[split]])
        for split, table in index.splits.items()
    }
    rows = {split: save_rows(work, table, masks) for split, table in kept.items()}
    splits = {split: table.num_rows for split, table in kept.items()}
    small = index.small - len(missing.intersection(ids["train"][: index.small]))
    recipe = {
        "source": "openimage-mini",
        "openimage_mini_version": VERSION,
        "rule": dataclasses.asdict(index.rule),
        "absent_tables": list(index.absent),
        "index_sha256": index.sha256,
        "ids_sha256": {split: ids_sha256(ids[split]) for split in ids},
        "missing_ids": len(left_out),
        "missing_ids_sha256": ids_sha256(left_out),
        "masks": masks is not None,
        "small_images": small,
    }
    return DatasetPlan(
        recipe=recipe,
        splits=splits,
        class_names=[name for _, name in index.classes],
        make_row=partial(mini_row, rows=rows, photos=photos),
        title="OpenImage-MINI (our reconstruction)",
        license=["cc-by-2.0", "cc-by-4.0"],
        description=_description(index, kept, small, len(left_out)),
        tiers={"small": {"train": small, "validation": splits["validation"]}} if small else {},
        extra_files={
            "missing_ids.txt": "".join(f"{image_id}\n" for image_id in left_out),
            "classes.csv": "LabelName,DisplayName\n" + "".join(f'{label},"{name}"\n' for label, name in index.classes),
        },
    )


# Filled in by whoever publishes the data set.
TAKEDOWN_CONTACT = "TAKEDOWN-CONTACT"


def _description(index: Index, kept: Mapping[str, pa.Table], small: int, missing: int) -> str:
    rule = index.rule
    boxes = {
        split: np.bincount(pc.list_flatten(table["categories"]).to_numpy(), minlength=len(index.classes))
        for split, table in kept.items()
    }
    classes = "\n".join(
        f"| {name} | {label} | {train:,} | {validation:,} |"
        for (label, name), train, validation in zip(index.classes, boxes["train"], boxes["validation"], strict=True)
    )
    turned = sum(sum(bool(degrees) for degrees in table["rotation"].to_pylist()) for table in kept.values())
    read = "\n".join(f"- {name}: {_in_words(counts)}" for name, counts in index.counts.items())
    drawn = "only boxes drawn by hand (xclick)" if rule.hand_drawn else "boxes of every source"
    absent = f" Tables that were not there: {', '.join(index.absent)}." if index.absent else ""
    gone = (
        f"{missing:,} chosen photos no longer exist; `missing_ids.txt` lists them. None was replaced."
        if missing
        else "Every chosen photo could be had; `missing_ids.txt` is empty."
    )
    return f"""
A set of photos with several objects each, chosen from Open Images by a fixed rule. **This is our reconstruction**:
the paper that names OpenImage-MINI (arXiv 2303.16947) never released its list, and how it was made is not known.
Numbers on this set cannot be compared with the paper's.

The paper's: the name, and that there is such a benchmark. Open Images': the photos, boxes, masks, classes and the
official splits. Ours: the rule below, every number in it, and the columns. The authors of the paper had no part in it.

## Composition

{_composition(index, kept)}

Two configurations: `default`, all {kept["train"].num_rows:,} training images, and `small`, its first {small:,}, for
cheap runs. Both have the same {kept["validation"].num_rows:,} validation images, of the official validation split.

## Selection

- Boxes: {drawn}; not those marked as group, depiction or inside view, without area, or repeated. Boxes that reach
  out of the image are clipped.
- Classes: {len(index.classes)}; leaves of the hierarchy that have masks, as far as these tables were there, with at
  least {rule.least_train_boxes:,} training and {rule.least_validation_boxes:,} validation boxes.{absent}
- Images: at least {rule.least_boxes} boxes of at least {rule.least_classes} classes, and one box with
  {rule.least_side} <= sqrt(area) <= {rule.greatest_side} of the image.
- Training images: greedy, the rarest class first, up to a cap per class that rises by {rule.cap_step} per round;
  within a class by the SHA-1 of "{rule.salt}" and the id. Validation images: by that SHA-1. No image is in both.
- {gone}

Only boxes of these classes are annotated, and not exhaustively: what has no box is not thereby background. In
`segmentation`, pixels without a mask are 255 (ignore); smaller objects lie over larger ones.

Photos and boxes are as Open Images stores them. {turned:,} of the photos are listed with a rotation other than 0,
which is how far they would have to be turned to stand upright; it was not applied. Where a file's metadata asks
viewers to turn it, the metadata was removed, for boxes refer to the pixels as they are stored.

## Biases and use

- Photos that Flickr users shared, which lean towards North America and Europe (arXiv 1711.08536). People are in many,
  and were not asked.
- The rule prefers what it can count: photos with several annotated objects of several classes. It drops groups,
  drawings and views from inside, classes without masks, and classes that are rare in Open Images.
- Balancing by class changes how often things are seen: shares of classes here are no shares of anything else.
- Where classes of people are among them, they say what annotators believed to see. Do not teach them as the truth.
- Meant for research on features of objects among others. Not meant for identifying people.

## Licences and attribution

Photos: each has its own licence in `license`, its author in `author`, and its page in `landing_url`; whoever shows a
photo names them. Open Images lists all as CC BY 2.0 and gives no warranty for that; a photo may have changed its
licence since. Annotations: CC BY 4.0, by Google LLC. The selection, as ours, is under CC BY 4.0 as well.

To have a photo taken down, as its author or as somebody in it, write to {TAKEDOWN_CONTACT} with its `image_id`.

## Classes

| class | Open Images | training boxes | validation boxes |
| --- | --- | --- | --- |
{classes}

## What was read

{read}
"""


def _composition(index: Index, kept: Mapping[str, pa.Table]) -> str:
    """A table of what the splits hold."""
    lines = ["| split | photos | boxes | boxes per photo: least, median, most | authors | without an author |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for split, table in kept.items():
        per_photo = pc.list_value_length(table["categories"]).to_numpy(zero_copy_only=False)
        spread = f"{per_photo.min()}, {np.median(per_photo):g}, {per_photo.max()}" if len(per_photo) else "-"
        authors = [author for author in table["author"].to_pylist() if author]
        counts = f"{table.num_rows:,} | {per_photo.sum():,} | {spread} | {len(set(authors)):,}"
        lines.append(f"| {split} | {counts} | {table.num_rows - len(authors):,} |")
    return "\n".join([*lines, "", f"{len(index.classes)} classes, listed with their boxes at the end."])
