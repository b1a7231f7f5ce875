"""The procedural data set `scenes` as Parquet rows; `modeling_decodepos.data.scenes` draws it."""

import argparse
from functools import partial

import numpy as np

from modeling_decodepos.commands.settings import number
from modeling_decodepos.data.scenes import (
    CLASS_NAMES,
    FIRST_INDEX,
    SCENES_VERSION,
    SceneSpec,
    render_scene,
    sample_scene,
)
from modeling_decodepos.data.schema import unit_xyxy_to_xywh

from ..build.parquet import DatasetPlan, Row
from ..build.work_folder import WorkFolder
from ..pictures.encoded import EncodedPicture, encode_png, picture_row

LEAST_SIDE = 32

HELP = "procedural scenes, drawn here: no download"

DESCRIPTION = """
Procedural scenes for studying how surroundings and position leak into region features. Each image shows 2 to 7 objects
before a textured background; the class of an object is its shape and its texture ("striped heart"), while colour,
size, rotation and place are nuisance. Objects overlap and nest, and each shows at least 35 % of its pixels.

Boxes are amodal: the tight extent of the whole shape inside the image, parts hidden by other objects included. `area`
and `segmentation` count what is seen.

Images are PNG and not JPEG: the 8-pixel blocks of JPEG lie on a fixed grid, which would be a trace of position in the
pixels of a data set made to measure position.
"""


def scene_row(split: str, number: int, seed: int, size_px: int) -> Row:
    """Row `number` of a split."""
    spec = sample_scene(seed, FIRST_INDEX[split] + number, size_px)
    return row_of(spec, f"scenes-{seed}-{split}-{number:06d}")


def row_of(spec: SceneSpec, image_id: str) -> Row:
    """The row of one scene, its objects from the back to the front."""
    scene = render_scene(spec)
    count = len(scene.classes)
    boxes = np.rint(unit_xyxy_to_xywh(scene.boxes, spec.size_px, spec.size_px))  # their edges lie between pixels
    seen = np.bincount(scene.instances.ravel(), minlength=count + 1)[1:]
    objects = {
        "bbox": boxes.tolist(),
        "category": scene.classes.tolist(),
        "area": seen.tolist(),
        "iscrowd": [False] * count,
    }
    picture = EncodedPicture(encode_png(scene.pixels), f"{image_id}.png", (spec.size_px, spec.size_px), orientation=1)
    return picture_row(picture, image_id, objects, encode_png(scene.segmentation))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `prepare scenes`."""
    parser.add_argument("--train", type=number(int, 0, 10_000_000), default=4000, help="images for training")
    parser.add_argument("--validation", type=number(int, 0, 10_000_000), default=500, help="images for validation")
    add_drawing_arguments(parser, size_px=128, result="other scenes")


def add_drawing_arguments(parser: argparse.ArgumentParser, size_px: int, result: str) -> None:
    """Flags of whatever is drawn; another seed gives the `result`."""
    parser.add_argument(
        "--size_px", type=number(int, LEAST_SIDE, 16_384), default=size_px, help="side of the square images"
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, help=f"another seed gives {result}")
    parser.set_defaults(proposals="boxes")


def open_source(arguments: argparse.Namespace, work: WorkFolder) -> DatasetPlan:
    """What `prepare scenes` builds."""
    return scenes_source(arguments.train, arguments.validation, arguments.size_px, arguments.seed)


def scenes_source(train: int = 4000, validation: int = 500, size_px: int = 128, seed: int = 0) -> DatasetPlan:
    """The data set of these settings, to be handed to `build_dataset`."""
    splits = {"train": train, "validation": validation}
    for split, rows in splits.items():
        if not 0 <= rows <= FIRST_INDEX["validation"]:
            raise ValueError(f"{split} is {rows}, expected 0 to {FIRST_INDEX['validation']} images.")
    if size_px < LEAST_SIDE:
        raise ValueError(f"size_px is {size_px}, expected at least {LEAST_SIDE}: textures cannot be told apart below.")
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more.")
    recipe = {"source": "scenes", "scenes_version": SCENES_VERSION, **splits, "size_px": size_px, "seed": seed}
    return DatasetPlan(
        recipe=recipe,
        splits=splits,
        class_names=CLASS_NAMES,
        make_row=partial(scene_row, seed=seed, size_px=size_px),
        title="DecodePos scenes",
        license="apache-2.0",
        description=DESCRIPTION,
        proposals="boxes",
    )
