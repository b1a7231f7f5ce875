"""A built data set folder again, with other regions; all else in its rows stays as it is."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from modeling_decodepos.data.schema import build_features

from ..build.parquet import CARD_NAME, DatasetPlan, Row, data_sha256, load_manifest
from ..build.parquet_rows import rows_of
from ..build.work_folder import WorkFolder

HELP = "a built folder with other regions (--proposals); rows and their order stay as they are"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `prepare regions`."""
    parser.add_argument("--source", type=Path, required=True, help="folder written by this program; it is only read")
    parser.set_defaults(proposals="selective")


def open_source(arguments: argparse.Namespace, work: WorkFolder) -> DatasetPlan:
    """What `prepare regions` builds."""
    if arguments.source.resolve() == arguments.output.resolve():
        raise ValueError(f"--source and --output are both {arguments.output}. Give the new data set another folder.")
    return regions_source(arguments.source)


def regions_source(folder: Path) -> DatasetPlan:
    """The rows of a finished folder, to be handed to `build_dataset` with other proposals."""
    from huggingface_hub import DatasetCard, DatasetCardData

    manifest = load_manifest(folder)
    if not manifest["complete"]:
        raise ValueError(f"{folder} is not finished. Run the command that builds it to its end first.")
    _check_columns(folder, manifest)
    lists = sorted(
        path for path in folder.iterdir() if path.suffix in (".txt", ".csv")
    )  # such as those of missing ids
    card = DatasetCard((folder / CARD_NAME).read_text(encoding="utf-8"))
    entries = manifest["files"].items()
    files = {
        split: tuple(folder / path for path, entry in entries if entry["split"] == split)
        for split in manifest["splits"]
    }
    data = card.data
    assert isinstance(data, DatasetCardData)
    title = data.pretty_name or folder.name
    body = card.text.split(f"# {title}\n", 1)[-1].split("\n| split |", 1)[0].strip()  # down to the table of splits
    return DatasetPlan(
        recipe={"source": "regions", "of_data_sha256": data_sha256(manifest), "of_recipe": manifest["recipe"]},
        splits=manifest["splits"],
        class_names=manifest["class_names"],
        make_row=partial(stored_row, files=files),
        title=title,
        license=data.license or "unknown",
        description=f"The images and annotations of another build, with other regions.\n\n{body}",
        tiers=manifest.get("tiers", {}),
        extra_files={path.name: path.read_text(encoding="utf-8") for path in lists},
    )


def stored_row(split: str, number: int, files: Mapping[str, tuple[Path, ...]]) -> Row:
    """Row `number` of a split, from its files in order."""
    return rows_of(files[split])[number]


def _check_columns(folder: Path, manifest: Mapping[str, Any]) -> None:
    wanted = build_features(manifest["class_names"]).arrow_schema
    for path in manifest["files"]:
        if not (folder / path).is_file():
            raise ValueError(f"{folder / path} is missing. Build {folder} again: it makes what is missing.")
        found = pq.read_schema(folder / path)
        if not found.remove_metadata().equals(wanted.remove_metadata()):
            raise ValueError(
                f"{folder / path} has the columns {', '.join(found.names)}, or other types than expected in "
                f"{', '.join(wanted.names)}; the layout is in modeling_decodepos/data/schema.py."
            )
