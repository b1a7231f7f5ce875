"""Weights for other libraries, and checkpoints of other libraries as a start for a run.

python -m training.export runs/scenes_smoke/export/pretraining --format backbone --output my-backbone
python -m training.export resnet50.pth --from torchvision --format backbone --output my-start
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining, DecodePosModel
from training.export.checkpoint_files import check_finite
from training.export.folders import Readme, new_folder, write_readme
from training.export.graphs import write_graph
from training.export.layouts import LAYOUTS
from training.export.libraries import write_library
from training.export.loading import LoadedNetwork, load_foreign, load_network
from training.export.native import export_backbone, export_pretraining, save_backbone
from training.export.pixel_forms import PIXEL_FORMS
from training.export.resnets import BATCH_NORM

__all__ = ["export", "export_backbone", "export_pretraining"]

GRAPHS = ("onnx", "torch_export")


def export(loaded: LoadedNetwork, format_name: str, output: Path, image_size_px: int = 224) -> Readme:
    """Write a network to a new folder in a format of `training.export.__main__.FORMATS`; what its README says."""
    extractor, place = loaded.extractor, output.name
    with new_folder(output) as folder:
        if format_name in GRAPHS:
            readme = write_graph(extractor, format_name, folder, place, image_size_px)
        elif format_name in LAYOUTS:
            readme = write_library(extractor.backbone, format_name, folder, place)
        else:
            readme = _write_backbone(extractor, folder, place, image_size_px)
        readme.lines += [f"When it was read: {note}." for note in loaded.notes]
        write_readme(folder, readme, loaded.origin)
    return readme


def _write_backbone(extractor: DecodePosModel, folder: Path, place: str, image_size_px: int) -> Readme:
    save_backbone(extractor, folder, image_size_px)
    config: Any = extractor.config.backbone_config
    facts: dict[str, Any] = {"architecture": config.model_type, "pixels": asdict(PIXEL_FORMS["imagenet"])}
    if config.model_type == "resnet":
        facts |= {"stride_in": "1x1" if config.downsample_in_bottleneck else "3x3", "batch_norm": BATCH_NORM}
    return Readme(
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{place}")\nmodel = AutoModel.from_pretrained("{place}")',
        f"{config.model_type} backbone for transformers",
        facts=facts,
        lines=[f"To start a run from it: `accelerate launch training/pretrain.py --backbone {place}`."],
    )


def run(args: argparse.Namespace) -> str:
    """Export a model or import a checkpoint; returns what to print."""
    disable_progress_bar()
    if args.format == "pretraining":
        return _export_pretraining(args)
    if args.layout is not None:
        loaded = load_foreign(Path(args.model), args.layout, args.network, args.stride_in, args.pixels)
    elif args.stride_in or args.pixels:
        raise ValueError("--stride_in and --pixels describe a checkpoint of another library: they go with --from.")
    else:
        loaded = load_network(args.model, args.network)
    readme = export(loaded, args.format, args.output, args.size_px)
    return "\n".join([*loaded.notes, *readme.fact_lines(), f"wrote {args.output}: {readme.title}", "", readme.code])


def _export_pretraining(args: argparse.Namespace) -> str:
    if args.layout is not None or args.network == "teacher":
        raise ValueError("--format pretraining holds student, teacher and heads: leave out --from and --network.")
    model = DecodePosForPreTraining.from_pretrained(args.model)
    check_finite(model.state_dict(), args.model)
    with new_folder(args.output) as folder:
        export_pretraining(model, folder, args.size_px)
    return f"wrote {args.output}"
