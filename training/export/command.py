"""What a run leaves for others, in their own formats, and what others left for a run to start from.

python -m training.export runs/scenes_smoke/export/pretraining --format backbone --output my-backbone
python -m training.export resnet50.pth --from torchvision --format backbone --output my-start
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining, DecodePosModel
from training.export.checkpoint_files import check_finite
from training.export.folders import Page, new_folder, write_page
from training.export.graphs import write_onnx, write_torch_export
from training.export.native import export_backbone, export_pretraining, save_backbone
from training.export.sources import Source, load_foreign, load_source
from training.export.state_dicts import describe_native, write_library

__all__ = ["export", "export_backbone", "export_pretraining"]


def export(source: Source, format_name: str, output: Path, image_size_px: int = 224) -> Page:
    """Write a network to a new folder in a format of `training.export.__main__.FORMATS`; what its README says."""
    with new_folder(output) as folder:
        page = _write(source.extractor, format_name, folder, output.name, image_size_px)
        page.lines += [f"When it was read: {note}." for note in source.notes]
        write_page(folder, page, source.origin)
    return page


def _write(extractor: DecodePosModel, format_name: str, folder: Path, place: str, image_size_px: int) -> Page:
    if format_name == "torch_export":
        return write_torch_export(extractor, folder, place, image_size_px)
    if format_name == "onnx":
        return write_onnx(extractor, folder, place, image_size_px)
    if format_name != "backbone":
        return write_library(extractor.backbone, format_name, folder, place)
    save_backbone(extractor, folder, image_size_px)
    code = (
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{place}")\nmodel = AutoModel.from_pretrained("{place}")'
    )
    lines = [f"To start a run from it: `accelerate launch training/pretrain.py --backbone {place}`."]
    config: Any = extractor.config.backbone_config
    return Page(f"{config.model_type} backbone for transformers", code, facts=describe_native(config), lines=lines)


def run(args: argparse.Namespace) -> str:
    """Export a model or import a checkpoint; returns what to print."""
    disable_progress_bar()
    if args.format == "pretraining":
        return _export_pretraining(args)
    if args.layout is not None:
        source = load_foreign(Path(args.model), args.layout, args.network, args.stride_in, args.pixels)
    elif args.stride_in or args.pixels:
        raise ValueError("--stride_in and --pixels describe a checkpoint of others: they go with --from.")
    else:
        source = load_source(args.model, args.network)
    page = export(source, args.format, args.output, args.size_px)
    return "\n".join([*source.notes, *page.fact_lines(), f"wrote {args.output}: {page.title}", "", page.code])


def _export_pretraining(args: argparse.Namespace) -> str:
    if args.layout is not None or args.network == "teacher":
        raise ValueError("--format pretraining holds student, teacher and heads: leave out --from and --network.")
    model = DecodePosForPreTraining.from_pretrained(args.model)
    check_finite(model.state_dict(), args.model)
    with new_folder(args.output) as folder:
        export_pretraining(model, folder, args.size_px)
    return f"wrote {args.output}"
