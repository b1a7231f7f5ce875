"""A folder of plain pictures, without annotations, as rows of the Parquet contract."""

import argparse

from ..build.parquet import DatasetPlan
from ..build.work_folder import WorkFolder
from ..pictures.encoded import PLACEHOLDER_CLASS
from ..pictures.listing import list_pictures
from .own_pictures import Collection, Described, add_arguments, make_source

__all__ = ["HELP", "add_arguments", "open_source"]

HELP = "a folder of pictures, with all its subfolders, without annotations"

DESCRIPTION = f"""
Pictures without annotations: `objects` is empty everywhere, and the class name "{PLACEHOLDER_CLASS}" stands in for
names that do not exist. `image_id` is the path that a picture had in its folder. The files are stored as they were.
"""


def open_source(arguments: argparse.Namespace, work: WorkFolder) -> DatasetPlan:
    """What `prepare folder` builds."""
    files = list_pictures(arguments.source)
    found = Collection(
        kind="folder 1",
        folder=arguments.source,
        files=files,
        pictures=[Described(name) for name in files],
        class_names=[PLACEHOLDER_CLASS],
        title="A folder of pictures",
        description=DESCRIPTION,
    )
    return make_source(arguments, work, found)
