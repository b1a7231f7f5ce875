"""Writes the golden values that the tests of region pooling compare with.

    python -m benchmarks.golden_roi_align

They come from torchvision's C++ `roi_align` (fp32, CPU, `aligned=True`), so this needs an environment in which
torchvision's compiled operators exist; the tests need only the file. Every map and box is stored beside the values,
and which torchvision made them stands in the file's metadata. A run with the same torchvision writes the same bytes.

Boxes larger than their map are left out of the adaptive cases: there the operator takes ever more samples, and ours by
its documented rule no more than a map-sized box needs. What that amounts to is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.roi_align import has_torchvision_operators, torchvision_pool
from modeling_decodepos.region_pooling import pool_regions

GOLDEN = Path(__file__).parents[1] / "tests" / "modeling" / "golden_roi_align.safetensors"

# xyxy in [0, 1] of the image. Those of the odd-sized map come in two rows, one per image of the batch.
INSIDE = (0.20, 0.15, 0.75, 0.80)
SMALL = (0.41, 0.37, 0.49, 0.46)  # about one cell
WHOLE = (0.00, 0.00, 1.00, 1.00)
AT_BORDER = (0.00, 0.35, 0.40, 1.00)
PARTLY_OUTSIDE = (0.62, -0.31, 1.24, 0.43)
BARELY_OUTSIDE = (-0.06, 0.50, 0.33, 1.04)  # less than one cell: the border's value goes on
OUTSIDE = (1.30, 0.20, 1.90, 0.70)
THIN_UPRIGHT = (0.50, 0.05, 0.51, 0.95)
THIN_LEVEL = (0.10, 0.66, 0.90, 0.67)
LARGER_THAN_MAP = (-0.70, -0.40, 1.60, 1.50)

BOXES = {
    "odd": [
        [INSIDE, WHOLE, AT_BORDER, PARTLY_OUTSIDE, THIN_UPRIGHT],
        [SMALL, OUTSIDE, BARELY_OUTSIDE, THIN_LEVEL, (0.33, 0.02, 0.87, 0.98)],
    ],
    "square": [[INSIDE, SMALL, WHOLE, AT_BORDER, PARTLY_OUTSIDE, BARELY_OUTSIDE, OUTSIDE, THIN_UPRIGHT]],
    # With one bin, samples fall exactly one cell outside the first and the last cell: they still count.
    "edge": [
        [(-0.125, 0.25, 0.0, 0.75), (1.0, 0.25, 1.125, 0.75), (0.25, -0.125, 0.75, 0.0), (0.25, 1.0, 0.75, 1.125)]
    ],
}
SHAPES = {"odd": (2, 3, 9, 13), "square": (1, 2, 14, 14), "edge": (1, 1, 8, 8)}
BINS = {"odd": (1, 3, 7), "square": (1, 3, 7, 14), "edge": (1, 2)}
SAMPLING_RATIOS = (0, 2)  # 0 is adaptive, -1 in torchvision


def golden_values() -> dict[str, Tensor]:
    """Maps (`NAME.map`), boxes (`NAME.boxes`) and pooled values (`NAME.BINS.SAMPLING_RATIO`)."""
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Tensor] = {}
    for name, shape in SHAPES.items():
        feature_map, boxes = torch.randn(shape, generator=generator), torch.tensor(BOXES[name])
        values[f"{name}.map"], values[f"{name}.boxes"] = feature_map, boxes
        for bins in BINS[name]:
            for sampling_ratio in SAMPLING_RATIOS:
                pooled = torchvision_pool(feature_map, boxes, bins, sampling_ratio)
                values[f"{name}.{bins}.{sampling_ratio}"] = pooled.contiguous()
    return values


def greatest_difference(values: dict[str, Tensor]) -> float:
    """Greatest difference between golden values and ours."""
    differences = []
    for key, golden in values.items():
        name, *case = key.split(".")
        if len(case) == 2:
            ours = pool_regions(values[f"{name}.map"], values[f"{name}.boxes"], int(case[0]), int(case[1]))
            differences.append((ours - golden).abs().max().item())
    return max(differences)


def main() -> None:
    """Write the file and say how far ours is from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=GOLDEN, help="where to write the values")
    output: Path = parser.parse_args().output
    if not has_torchvision_operators():
        raise SystemExit(
            "torchvision's compiled operators do not exist in this environment. Make one with the default builds of "
            "torch and torchvision (`pip install torch torchvision`) and run this there."
        )
    import torchvision

    values = golden_values()
    operator = f"torchvision {torchvision.__version__} ops.roi_align, CPU, fp32, aligned=True"
    save_file(values, output, metadata={"operator": operator})
    print(f"{output.name}: {output.stat().st_size} bytes from {operator}")
    print(f"greatest difference from ours: {greatest_difference(values):.1e}")

    feature_map, box = values["square.map"], torch.tensor([[LARGER_THAN_MAP]])
    for bins, sampling_ratio in ((3, 0), (3, 2), (7, 0), (7, 2), (14, 0), (14, 2)):
        difference = pool_regions(feature_map, box, bins, sampling_ratio)
        difference = difference - torchvision_pool(feature_map, box, bins, sampling_ratio)
        print(
            f"a box 2.3 x 1.9 times the map, {bins} bins, {sampling_ratio or 'adaptive'} samples: "
            f"differs by up to {difference.abs().max():.1e}"
        )


if __name__ == "__main__":
    main()
