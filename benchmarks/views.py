"""The views of one image per core, ours against PIL and torchvision: `python -m benchmarks.views`.

Both sides make the four views of the objective `both` from the bytes of an image and of a donor, on one core, and
deliver batches of 32. Ours makes 8-bit views as the trainer's data set does, from JPEG files and from images that were
decoded once; normalising them to float is timed on top, because the trainer leaves it to the device. The peer is
`benchmarks.pil_views`, whose views are normalised float tensors.

A second table gives the stages one by one, and a third what both sides make of equal parameters.
"""

from __future__ import annotations

import argparse
import functools
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from benchmarks.photos import Photo, add_photo_options, decode_each_time, decode_once, load_photos
from benchmarks.pil_views import PilViews, colours_by_pil, peer_name, resized_crop, to_normalised_tensor
from benchmarks.timing import (
    clock_for,
    clock_name,
    print_machine,
    print_result,
    print_table,
    ratio,
    spread,
    time_interleaved,
)
from modeling_decodepos.losses import OBJECTIVES
from training.data.batches import RegionDataset
from training.data.decoding import decode_image
from training.recipe import ViewArguments
from training.views.colours import Photometric, apply_photometric
from training.views.normalise import normalise
from training.views.sampling import PixelSource, read_pixels, sample_views

VIEWS = list(OBJECTIVES["both"].views)
ARGS = ViewArguments()
BATCH_SIZE = 32
# Wanted ratios to the peer.
TARGETS = {"JPEG, uint8": 3.0, "JPEG, float": 2.5, "cache, uint8": 5.5}


def our_pass(dataset: RegionDataset, floats: bool) -> None:
    """The views of every image, batch by batch."""
    for start in range(0, len(dataset), BATCH_SIZE):
        batch = dataset.__getitems__([(0, index) for index in range(start, min(start + BATCH_SIZE, len(dataset)))])
        if floats:
            for view in batch.views.values():
                normalise(view.pixel_values)


def their_pass(photos: Sequence[Photo], views: PilViews) -> None:
    """The same by the peer."""
    for start in range(0, len(photos), BATCH_SIZE):
        samples = []
        for index in range(start, min(start + BATCH_SIZE, len(photos))):
            photo, donor = photos[index], photos[(index + 1) % len(photos)]
            samples.append(views(photo.open(), donor.open(), photo.boxes.tolist()))
        default_collate(samples)


# --- stages


@dataclass(frozen=True)
class Reading:
    """A window of an image that both sides read with equal parameters."""

    image: np.ndarray
    pil: Image.Image
    source: PixelSource

    def ours(self) -> np.ndarray:
        """Cropped, resized and perhaps mirrored."""
        return read_pixels(replace(self.source, colours=Photometric()), self.image)

    def theirs(self) -> Image.Image:
        """The same by PIL."""
        pixels = resized_crop(self.pil, self.source.window, self.source.side_px)
        return pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.source.flip else pixels


def readings(photos: Sequence[Photo]) -> list[Reading]:
    """Every window that the views of every photo read, donors included."""
    images = [decode_image(photo.jpeg, "") for photo in photos]
    pils = [photo.open() for photo in photos]
    result = []
    for index, photo in enumerate(photos):
        donor = (index + 1) % len(photos)
        rng = np.random.default_rng(index)
        views = sample_views(rng, images[index].shape[:2], images[donor].shape[:2], photo.boxes, VIEWS, ARGS)
        for view in views.values():
            result.append(Reading(images[index], pils[index], view.source))
            if view.background is not None:
                result.append(Reading(images[donor], pils[donor], view.background))
    return result


def stage_passes(photos: Sequence[Photo]) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Each stage over all photos with equal parameters: ours and theirs, by name."""
    reads = readings(photos)
    pixels = [reading.ours() for reading in reads]
    pils = [Image.fromarray(array) for array in pixels]
    jitter = [replace(reading.source.colours, blur_sigma=0.0) for reading in reads]
    blur = [Photometric(blur_sigma=reading.source.colours.blur_sigma) for reading in reads]

    def each(function: Callable[..., object], *lists: Sequence[object]) -> Callable[[], object]:
        def run() -> None:
            for items in zip(*lists, strict=True):
                function(*items)

        return run

    return {
        "decode image and donor": (
            each(lambda photo: (decode_image(photo.jpeg, ""), decode_image(photo.jpeg, "")), photos),
            each(lambda photo: (photo.open(), photo.open()), photos),
        ),
        "crop, resize, flip": (each(Reading.ours, reads), each(Reading.theirs, reads)),
        "jitter, grey, solarise": (each(apply_photometric, pixels, jitter), each(colours_by_pil, pils, jitter)),
        "blur": (each(apply_photometric, pixels, blur), each(colours_by_pil, pils, blur)),
        "normalised float": (
            each(lambda array: normalise(torch.from_numpy(array)[None].permute(0, 3, 1, 2)), pixels),
            each(to_normalised_tensor, pils),
        ),
    }


def parameters_pass(photos: Sequence[Photo]) -> None:
    """Our random parameters and boxes alone."""
    for index, photo in enumerate(photos):
        sample_views(np.random.default_rng([0, 1, 0, index]), (480, 640), (480, 640), photo.boxes, VIEWS, ARGS)


# --- agreement


def agreement(photos: Sequence[Photo]) -> dict[str, tuple[float, int, float]]:
    """For equal parameters, by stage: mean and greatest difference to the peer, and how far the stage moves pixels."""
    differences: dict[str, list[np.ndarray]] = {}
    effects: dict[str, list[np.ndarray]] = {}

    def compare(name: str, ours: np.ndarray, theirs: Image.Image, before: np.ndarray | None) -> None:
        differences.setdefault(name, []).append(np.abs(ours.astype(int) - np.asarray(theirs)).ravel())
        if before is not None:
            effects.setdefault(name, []).append(np.abs(ours.astype(int) - before).ravel())

    for reading in readings(photos):
        pixels, colours = reading.ours(), reading.source.colours
        compare("crop, resize, flip", pixels, reading.theirs(), None)
        treatments = {
            "jitter": Photometric(jitter=colours.jitter),
            **{name: Photometric(jitter=((name, factor),)) for name, factor in colours.jitter},
            "grey": Photometric(grayscale=colours.grayscale),
            "solarise": Photometric(solarize=colours.solarize),
            "blur (kernels differ)": Photometric(blur_sigma=colours.blur_sigma),
        }
        for name, treatment in treatments.items():
            if treatment != Photometric():
                theirs = colours_by_pil(Image.fromarray(pixels), treatment)
                compare(name, apply_photometric(pixels, treatment), theirs, pixels)
    return {
        name: (
            float(np.concatenate(parts).mean()),
            int(np.concatenate(parts).max()),
            float(np.concatenate(effects[name]).mean()) if name in effects else 0.0,
        )
        for name, parts in differences.items()
    }


def main() -> None:
    """Measure, print the tables and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_photo_options(parser)
    parser.add_argument("--rounds", type=int, default=7, help="how often each variant is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print_machine()
    print(f"measured in {clock_name(1)}, median [min..max] of {arguments.rounds} rounds")
    print(f"theirs: {peer_name()}, float out")
    photos = load_photos(arguments.images, arguments.images_count)
    jpeg, cache = (make(photos, ARGS, VIEWS) for make in (decode_each_time, decode_once))

    variants: dict[str, Callable[[], object]] = {
        "JPEG, uint8": functools.partial(our_pass, jpeg, False),
        "JPEG, float": functools.partial(our_pass, jpeg, True),
        "cache, uint8": functools.partial(our_pass, cache, False),
        "cache, float": functools.partial(our_pass, cache, True),
        "theirs": functools.partial(their_pass, photos, PilViews(ARGS)),
    }
    stages = stage_passes(photos)
    parts: dict[str, Callable[[], object]] = {"parameters": functools.partial(parameters_pass, photos)}
    for name, (ours, theirs) in stages.items():
        parts |= {f"ours {name}": ours, f"theirs {name}": theirs}
    gc.freeze()  # as a loader's worker does, for both sides
    seconds = time_interleaved({**variants, **parts}, arguments.rounds, clock=clock_for(1))

    milliseconds = {name: spread(values).median / len(photos) * 1000 for name, values in seconds.items()}
    gains = {name: ratio(seconds["theirs"], seconds[name]) for name in variants if name != "theirs"}
    print_table(
        ("ours from", "ours img/s", "theirs img/s", "ratio", "wanted"),
        [
            (
                name,
                f"{1000 / milliseconds[name]:.0f}",
                f"{1000 / milliseconds['theirs']:.0f}",
                gain,
                TARGETS.get(name, ""),
            )
            for name, gain in gains.items()
        ],
    )

    print("\nms per image (all its views), from JPEG")
    timed = [name for name in stages if name != "normalised float"]
    ours_rest = milliseconds["JPEG, uint8"] - sum(milliseconds[f"ours {name}"] for name in timed)
    theirs_rest = milliseconds["theirs"] - sum(milliseconds[f"theirs {name}"] for name in stages)
    rows: list[tuple[object, ...]] = [
        (name, f"{milliseconds[f'ours {name}']:.2f}", f"{milliseconds[f'theirs {name}']:.2f}",
         ratio(seconds[f"theirs {name}"], seconds[f"ours {name}"]))
        for name in stages
    ]  # fmt: skip
    rows.append(("boxes, parameters, cuts, pastes, batch (the rest)", f"{ours_rest:.2f}", f"{theirs_rest:.2f}", ""))
    rows.append(("  of it boxes and parameters", f"{milliseconds['parameters']:.2f}", "-", ""))
    print_table(("stage", "ours", "theirs", "ratio"), rows)

    print("\nequal parameters, grey levels of 255")
    agreed = agreement(photos[:20])
    print_table(
        ("stage", "mean difference", "greatest", "the stage itself moves"),
        [(name, f"{mean:.3f}", greatest, f"{effect:.1f}") for name, (mean, greatest, effect) in agreed.items()],
    )
    print_result(
        "views",
        peer_name(),
        gains["JPEG, uint8"].median,
        1000 / milliseconds["JPEG, uint8"],
        1000 / milliseconds["theirs"],
        "images/s",
        clock=clock_name(1),
        ratios={name: gain.median for name, gain in gains.items()},
        milliseconds=milliseconds,
        agreement={name: {"mean": mean, "greatest": greatest} for name, (mean, greatest, _) in agreed.items()},
    )


if __name__ == "__main__":
    main()
