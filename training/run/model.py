"""The networks of a run: around a named backbone or around weights, at sizes they can take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.configuration_decodepos import DecodePosConfig
from modeling_decodepos.losses import OBJECTIVES, Objective
from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining, DecodePosModel
from modeling_decodepos.stored_models import unusable_if_it_fails
from training.recipe import ModelArguments, Recipe
from training.run import batch_norms
from training.views.sampling import VIEW_RULES, view_side_px


def build_model(args: ModelArguments, seed: int, start: Path | None = None) -> DecodePosForPreTraining:
    """A pre-training model around a named backbone, or around weights: a Hub id's, a folder's, or those of `start`.

    It is in training mode, but for batch norms that keep their statistics.
    """
    net = _build_network(args, seed, start).train()
    if batch_norms.are_held(args):
        batch_norms.hold(net.decodepos, net.teacher["decodepos"])
    return net


def _build_network(args: ModelArguments, seed: int, start: Path | None) -> DecodePosForPreTraining:
    names = (
        "region_stage",
        "region_bins",
        "projector_hidden_size",
        "projection_size",
        "use_predictor",
        "centre_cells",
        "zero_init_residual",
    )
    heads: dict[str, Any] = {name: getattr(args, name) for name in names}
    objective = OBJECTIVES[args.objective]
    heads |= {"use_heads": bool(objective.of_heads().terms), "centre_features": bool(objective.of_features().terms)}
    set_seed(seed)
    if args.backbone in BACKBONES:
        if args.anchor_weight > 0:
            raise ValueError(
                f"anchor_weight is {args.anchor_weight:g}, but backbone {args.backbone!r} starts untrained: there is "
                "nothing to hold on to. Give a Hub id or a folder with weights as the backbone."
            )
        if args.teacher == "frozen":
            raise ValueError(
                f"teacher is frozen, but backbone {args.backbone!r} starts untrained: it would teach nothing. Set "
                "teacher to ema, or give a Hub id or a folder with weights as the backbone."
            )
        with unusable_if_it_fails(f"backbone {args.backbone}"):
            config = DecodePosConfig(backbone_config=BACKBONES[args.backbone](), **heads)
        return DecodePosForPreTraining(config)
    try:
        return DecodePosForPreTraining.from_backbone(start or args.backbone, **heads)
    except OSError as error:
        raise ValueError(
            f"backbone: {args.backbone!r} is none of {', '.join(BACKBONES)}, and no folder or reachable Hub id with a "
            f"config.json ({str(error).splitlines()[0]})"
        ) from error


def check_view_sizes(net: DecodePosForPreTraining, recipe: Recipe, objective: Objective) -> None:
    """Refuse sizes of views that the backbone's map cannot cover, before the first step does."""
    views = recipe.views
    sizes = {view_side_px(VIEW_RULES[name], views) for name in objective.views}
    try:
        for size in sorted(sizes | {recipe.measured_size_px}):
            net.decodepos.check_map_covers(torch.empty((1, 3, size, size), device="meta"))
    except ValueError as error:
        raise ValueError(
            f"view_size_px {views.view_size_px} gives views of {views.view_size_px} and, with small_view_scale, "
            f"{views.small_view_px} pixels, alone_size_px {views.alone_size_px} pictures of regions, "
            f"measure_size_px {recipe.run.measure_size_px}: {error}"
        ) from None


def write_out_attention(net: DecodePosForPreTraining) -> None:
    """Attention as two products and a softmax: in bf16 on a CPU torch's fused one takes 2 to 8 times as long."""
    for model in (net.decodepos, net.teacher["decodepos"]):
        if model.backbone.config._attn_implementation == "sdpa":
            model.backbone.set_attn_implementation("eager")


def compile_stages(net: DecodePosForPreTraining) -> None:
    """Compile the networks stage by stage, in place: the names of their weights stay."""
    # All stages of student and teacher share one `forward`, in full and half size, and torch counts by `forward`:
    # from the ninth version on it would run what it has not compiled as it is.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    models: tuple[DecodePosModel, DecodePosModel] = (net.decodepos, net.teacher["decodepos"])
    for model in models:
        split = model.config.splits_backbone
        parts = [model.backbone.embedder, *model.backbone.encoder.stages] if split else [model.backbone]
        for part in parts:
            part.compile()
