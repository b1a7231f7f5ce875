"""From nothing to a measured network in a dozen lines of code, small enough for any laptop and without a download.

    python -m training.tutorial [FOLDER]

It draws pictures, trains on them for a few steps, loads what came out, takes features of regions, and measures one
number. Read it from `main` on; each step says what it stands for and where to read on. Six steps on 64 pictures teach
a network nothing worth keeping: the point is that every piece of the path is here, in the order you will meet it. Each
step imports what it needs, so you also see where things are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_decodepos.commands.settings import CommandParser

if TYPE_CHECKING:
    import torch

SIZE_PX = 64


def build_data(folder: Path) -> None:
    """Step 1: a data folder, drawn in code.

    Each scene shows a few objects before a background, and knows their boxes. What is written is Parquet in the layout
    that every builder writes and every reader takes, so your own pictures go the same way: `prepare folder --source
    pictures`. See docs/data.md.
    """
    from dataset_scripts import prepare

    size = ["--train", "64", "--validation", "8", "--size_px", str(SIZE_PX), "--num_workers", "1"]
    code = prepare.main(["scenes", "--output", str(folder), *size])
    if code:
        raise SystemExit(code)


def train(data: Path, run: Path) -> None:
    """Step 2: six steps of pre-training.

    These are flags of `accelerate launch training/pretrain.py`; they make its default recipe smaller. `objective` is
    the method: which views of a picture the student and the teacher see, a table in modeling_decodepos/losses.py. See
    docs/concepts.md for what the views are for, and docs/training.md for real runs.
    """
    from training import pretrain

    keys: dict[str, object] = {
        "data": data, "output_dir": run, "objective": "both", "view_size_px": SIZE_PX, "region_bins": 4,
        "projector_hidden_size": 64, "projection_size": 32, "global_batch_size": 16, "max_steps": 6, "save_steps": 0,
        "log_steps": 2, "measure_steps": 0, "probe_count": 0, "num_workers": 0, "cpu": True,
    }  # fmt: skip
    pretrain.main([word for key, value in keys.items() for word in (f"--{key}", str(value))])


def load(run: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Step 3: load what came out, twice.

    `backbone` is a plain ResNet of transformers: whoever gets it needs nothing of ours. `pretraining` also holds the
    teacher and the heads, and its feature extractor pools regions. Both are safetensors and JSON. See docs/export.md
    for other libraries, docs/publishing.md for the Hub.
    """
    from transformers import AutoModel

    import modeling_decodepos  # noqa: F401  (tells AutoModel about our models)

    plain = AutoModel.from_pretrained(run / "export" / "backbone").eval()
    extractor = AutoModel.from_pretrained(run / "export" / "pretraining").eval()
    return plain, extractor


def describe_regions(extractor: torch.nn.Module, data: Path) -> torch.Tensor:
    """Step 4: one feature per object, (R, D), of the first validation picture.

    Boxes are x1, y1, x2, y2 in [0, 1] of the picture, as many as there are. Lists go in because pictures differ in
    their number; what comes out is padded, and `valid_regions` tells which rows are real.
    """
    import torch

    from training.data.sources import open_images
    from training.views.normalise import normalise

    images = open_images(str(data), "validation")
    pixels = torch.from_numpy(images.pixels(0)).permute(2, 0, 1)[None]
    boxes = [torch.from_numpy(images.boxes(0, epoch=0)).float()]
    with torch.no_grad():
        output = extractor(normalise(pixels), regions=boxes)
    return output.region_embeddings[output.valid_regions]


def measure_context_leak(run: Path) -> dict[str, float]:
    """Step 5: how much of a region's feature comes from what stands around the region, at each stage of the network.

    The diagnosis draws objects in surroundings that it then exchanges. 0: the feature follows the object alone; 0.5:
    both alike; 1: the surroundings alone. It grows with depth, as receptive fields do. `decodepos-diagnose` measures
    this and nine other things, on any network of transformers, beside the same network with random weights. See
    docs/diagnosis.md.
    """
    from modeling_decodepos.diagnosis import diagnose

    found = diagnose(str(run / "export" / "backbone"), images=16, size_px=96, measures="context")
    leaks = {stage.name: stage.numbers["context_leak"].value for stage in found.models[0].stages}
    return {name: value for name, value in leaks.items() if value is not None}  # None: all features were alike


def main(arguments: Sequence[str] | None = None) -> None:
    """All five steps, in a folder that stays."""
    parser = CommandParser(prog="python -m training.tutorial", description="The whole path, in miniature.")
    parser.add_argument(
        "folder", type=Path, nargs="?", help="where to put data and run (default: a new temporary one)"
    )
    folder = parser.parse_args(arguments).folder or Path(tempfile.mkdtemp(prefix="decodepos-tutorial-"))
    data, run = folder / "scenes", folder / "run"
    build_data(data)
    train(data, run)
    plain, extractor = load(run)
    print(f"\nloaded        {type(plain).__name__}, and {type(extractor).__name__} around the same weights")
    features = describe_regions(extractor, data)
    print(f"regions       {len(features)} objects, {features.shape[1]} numbers each")
    leaks = measure_context_leak(run)
    print(f"context leak  {', '.join(f'{name} {value:.2f}' for name, value in leaks.items())}")
    print(f"\nData and run are in {folder}; delete that folder when you have seen enough.")


if __name__ == "__main__":
    main()
