"""A picture of what a data folder holds: some of its images with their annotations, maps and regions.

python -m dataset_scripts.preview DIR --output preview.png
"""

import colorsys
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageColor, ImageDraw, ImageFont

from modeling_decodepos.commands.outputs import refuse_unwritable
from modeling_decodepos.commands.settings import CommandParser, number
from modeling_decodepos.data.pictures import broken_if_it_fails, decode_picture
from modeling_decodepos.data.schema import SEGMENTATION_IGNORE
from modeling_decodepos.drawing.page import page, picture

from .build.parquet_rows import ParquetRows, class_names_of

COLUMNS = ("image", "image_id", "width", "height", "objects", "regions", "segmentation")
TILE_PX = 288  # longer side of a picture
MOST_REGIONS = 40  # more of them hide the picture, and each other
_GAP_PX, _FONT_PX = 10, 13
_LINE_PX, _PITCH_PX = _FONT_PX + 6, TILE_PX + 4
_CROWD = "#b0b0b0"
_HEADINGS = ("annotations", "map (striped: ignored)", "regions")

Colour = tuple[int, int, int]


def class_colour(category: int) -> Colour:
    """The colour of a class. Neighbours in the list of classes get hues far apart."""
    hue, value = category * 0.381966 % 1, (1.0, 0.75, 0.9)[category % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_row(row: dict[str, Any], class_names: Sequence[str]) -> list[Image.Image]:
    """One image three times, side by side: with its annotations, its map and its regions."""
    pixels = _small(row)
    return [_with_objects(pixels, row, class_names), _with_map(pixels, row), _with_regions(pixels, row)]


def draw_rows(rows: Sequence[dict[str, Any]], class_names: Sequence[str]) -> Image.Image:
    """All images, two in a line, each with its id, its size and how much there is of everything."""
    entries = [_entry(row, class_names) for row in rows]
    lines = [entries[k : k + 2] for k in range(0, len(entries), 2)]
    heights = [max(entry.height for entry in line) + _GAP_PX for line in lines]
    width = _GAP_PX + len(lines[0]) * (entries[0].width + _GAP_PX)
    top = _GAP_PX + _LINE_PX
    canvas = Image.new("RGB", (width, top + sum(heights)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT_PX)
    for line, height in zip(lines, heights, strict=True):
        for column, entry in enumerate(line):
            left = _GAP_PX + column * (entry.width + _GAP_PX)
            canvas.paste(entry, (left, top))
            if line is lines[0]:
                for place, heading in enumerate(_HEADINGS):
                    draw.text((left + place * _PITCH_PX, _GAP_PX - 2), heading, fill="#666666", font=font)
        top += height
    return canvas


def _entry(row: dict[str, Any], class_names: Sequence[str]) -> Image.Image:
    """The three tiles of an image with its description below, which is cut off where it is too long."""
    tiles = draw_row(row, class_names)
    entry = Image.new("RGB", (len(tiles) * _PITCH_PX, tiles[0].height + _LINE_PX), "white")
    for place, tile in enumerate(tiles):
        entry.paste(tile, (place * _PITCH_PX, 0))
    font = ImageFont.load_default(_FONT_PX)
    ImageDraw.Draw(entry).text((0, tiles[0].height + 2), describe_row(row), fill="black", font=font)
    return entry


def describe_row(row: dict[str, Any]) -> str:
    """How much there is of everything in one image, and its id."""

    def count(number: int, thing: str) -> str:
        return f"{number} {thing}" if number == 1 else f"{number} {thing}s"

    crowds = sum(row["objects"]["iscrowd"])
    objects = len(row["objects"]["bbox"]) - crowds
    regions, sources = len(row["regions"]["bbox"]), sorted(set(row["regions"]["source"]))
    parts = [
        f"{row['width']} x {row['height']} px",
        count(objects, "object") + (f" and {count(crowds, 'crowd')}" if crowds else ""),
        "map" if row["segmentation"] else "no map",
        count(regions, "region")
        + (f" ({MOST_REGIONS} shown)" if regions > MOST_REGIONS else "")
        + (f" from {', '.join(sources)}" if sources else ""),
        row["image_id"],
    ]
    return " · ".join(parts)


def choose_rows(folder: Path, count: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows at equal distances over all of a folder's files, and the names of its classes."""
    files = sorted((folder / "data").glob("*.parquet"))
    if not files:
        raise ValueError(
            f"{folder} has no folder data with Parquet files in it. Build it first: "
            "python -m dataset_scripts.prepare --help."
        )
    schema = pq.read_schema(files[0])
    if missing := [name for name in COLUMNS if name not in schema.names]:
        raise ValueError(f"{files[0]} has no column {', '.join(missing)}, expected the columns that `prepare` writes.")
    rows = ParquetRows(files)
    if not len(rows):
        raise ValueError(f"{folder} holds no image.")
    numbers = [len(rows) * k // count for k in range(count)] if len(rows) > count else range(len(rows))
    return [rows[number] for number in numbers], class_names_of(schema) or []


def write_preview(folder: Path, output: Path, count: int = 10) -> None:
    """Draw a data folder into a picture or, if the output is so called, a page."""
    rows, class_names = choose_rows(folder, count)
    drawing = draw_rows(rows, class_names)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".html":
        what = f"{len(rows)} images of {folder.resolve().name}"
        shown = picture(drawing, f"{what} with annotations, maps and regions", "From left to right, twice.")
        output.write_text(page(what, [("Annotations, maps and regions", shown)]), encoding="utf-8")
    else:
        drawing.save(output)


# --------------------------------------------------------------------------------------------------------------- tiles


def _small(row: dict[str, Any]) -> Image.Image:
    """The picture, upright, at most `TILE_PX` wide and high."""
    scale = TILE_PX / max(row["width"], row["height"])
    size = max(1, round(row["width"] * scale)), max(1, round(row["height"] * scale))
    pixels = decode_picture(row["image"]["bytes"], row["image_id"], at_least=(2 * TILE_PX, 2 * TILE_PX))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _with_objects(pixels: Image.Image, row: dict[str, Any], class_names: Sequence[str]) -> Image.Image:
    tile, scale = pixels.copy(), pixels.width / row["width"]
    draw = ImageDraw.Draw(tile)
    objects = row["objects"]
    # Large ones first, so that the frames and names of small ones stay in sight.
    order = sorted(range(len(objects["bbox"])), key=lambda k: -objects["bbox"][k][2] * objects["bbox"][k][3])
    for k in order:
        crowd, category = objects["iscrowd"][k], objects["category"][k]
        colour = ImageColor.getrgb(_CROWD) if crowd else class_colour(category)
        corners = _corners(objects["bbox"][k], scale, tile.size)
        draw.rectangle(corners, outline=colour, width=1 if crowd else 2)
        name = class_names[category] if category < len(class_names) else str(category)
        _tag(draw, corners, f"crowd: {name}" if crowd else name, colour, tile.width)
    return tile


def _with_regions(pixels: Image.Image, row: dict[str, Any]) -> Image.Image:
    tile, scale = pixels.copy(), pixels.width / row["width"]
    draw = ImageDraw.Draw(tile)
    for k, box in enumerate(row["regions"]["bbox"][:MOST_REGIONS]):
        draw.rectangle(_corners(box, scale, tile.size), outline=class_colour(k), width=2)
    return tile


def _with_map(pixels: Image.Image, row: dict[str, Any]) -> Image.Image:
    if row["segmentation"] is None:
        return Image.new("RGB", pixels.size, "#f0f0f0")
    encoded = io.BytesIO(row["segmentation"]["bytes"])
    with broken_if_it_fails(row["image_id"], "segmentation"), Image.open(encoded) as image:
        labels = np.asarray(image.resize(pixels.size, Image.Resampling.NEAREST))
    grey = np.repeat(np.asarray(pixels.convert("L"), np.float32)[..., None], 3, axis=2)
    palette = np.array([(0, 0, 0), *(class_colour(k) for k in range(255))], np.float32)
    y, x = np.indices(labels.shape)
    stripes = np.where((x + y) % 8 < 4, 255.0, 0.0)[..., None]
    over = np.where((labels == SEGMENTATION_IGNORE)[..., None], stripes, palette[labels])
    share = np.where(labels == 0, 0.0, 0.6)[..., None]
    return Image.fromarray(np.rint(grey * (1 - share) + over * share).astype(np.uint8))


def _corners(box: Sequence[float], scale: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """First and last pixel of a box in a tile, none of them outside."""
    x, y, w, h = (value * scale for value in box)
    right, bottom = size[0] - 1, size[1] - 1
    left, top = min(max(round(x), 0), right), min(max(round(y), 0), bottom)
    return left, top, min(max(round(x + w) - 1, left), right), min(max(round(y + h) - 1, top), bottom)


def _tag(draw: ImageDraw.ImageDraw, corners: Sequence[float], text: str, colour: tuple[int, ...], width: int) -> None:
    """A name above its box, or at the top inside it where there is no room above."""
    font = ImageFont.load_default(_FONT_PX - 2)
    *_, text_width, text_height = draw.textbbox((0, 0), text, font=font)
    left = max(0, min(corners[0], width - text_width - 4))
    top = corners[1] - text_height - 1
    top = corners[1] if top < 0 else top
    draw.rectangle([left, top, left + text_width + 3, top + text_height], fill=colour)
    is_bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((left + 2, top - 1), text, fill="black" if is_bright else "white", font=font)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 drawn, 2 there is nothing to draw."""
    parser = CommandParser(
        prog="python -m dataset_scripts.preview",
        description="Draw images of a data folder with their annotations, maps and regions.",
    )
    parser.add_argument("folder", type=Path, help="folder that `prepare` built")
    parser.add_argument("--output", type=Path, required=True, help="picture (.png, .jpg) or page (.html) to write")
    parser.add_argument(
        "--count", type=number(int, 1, 10_000), default=10, help="images, at equal distances over all the rows"
    )
    parsed = parser.parse_args(arguments)
    try:
        refuse_unwritable(parsed.output)
        write_preview(parsed.folder, parsed.output, parsed.count)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {parsed.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
