"""DecodePos models: region features from any backbone, and the student/teacher pair that pre-trains it.

Shapes: B images, R regions (padded), N real regions of the batch, C channels, H W map cells, D embedding.

Weights lie under the key names of the backbone's own class, so a trained ResNet here is a plain ResNet there:
`model.backbone.state_dict()` loads into `transformers.ResNetModel` as it is.
"""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoModel, AutoModelForPreTraining, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer
from transformers.utils import ModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_decodepos import DecodePosConfig
from .feature_maps import last_map, map_channels, patch_size
from .imagenet import pixel_statistics
from .losses import OBJECTIVES, Objective, pair_loss
from .region_pooling import Offset, average_in_bins, cell_offset, pool_regions
from .regions import Regions, View, check_regions
from .stored_models import is_map_norm, load_whole, read_config, unusable_if_it_fails


@dataclass
class DecodePosModelOutput(ModelOutput):
    """Features of a batch of images, and of their regions if any were given."""

    # (B, C, H, W), the map regions are pooled from: stage 3 of a ResNet, else the backbone's last map
    feature_map: Tensor | None = None
    region_embeddings: Tensor | None = None  # (B, R, D), zero in the padding rows
    valid_regions: Tensor | None = None  # (B, R), true for the real rows
    # (B, D, H, W), the last stage on the whole image, and (B, D), its mean. Both are left out when regions are given:
    # a ResNet's last stage then ran on the regions instead.
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    # What the backbone gave on the way, its embedding first: up to the map where regions are given
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class DecodePosForPreTrainingOutput(ModelOutput):
    """Loss of a batch of views, and by view name what it compared."""

    loss: Tensor | None = None  # weighted sum of the terms
    terms: dict[str, Tensor] | None = None  # each loss term by name: detached, unweighted
    features: dict[str, Tensor] | None = None  # (B, R, C) of the student's regions, before its heads
    teacher_features: dict[str, Tensor] | None = None  # (B, R, C) of the teacher's
    # (B, R, D) of the student, and projections of the teacher; features where no term needs heads
    predictions: dict[str, Tensor] | None = None
    targets: dict[str, Tensor] | None = None


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's: teacher = momentum * teacher + (1 - momentum) * student.

    Parameters only: the teacher keeps its own batch-norm statistics, gathered on the views it sees (as in SoCo).
    """
    targets, sources = dict(teacher.named_parameters()), dict(student.named_parameters())
    shapes = {(name, p.shape) for name, p in targets.items()} ^ {(name, p.shape) for name, p in sources.items()}
    if shapes:
        raise ValueError(f"teacher and student differ in {sorted({name for name, _ in shapes})[:4]}.")
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"the teacher's momentum is {momentum}; expected a number in [0, 1], such as 0.99.")
    torch._foreach_lerp_(list(targets.values()), [sources[name] for name in targets], 1.0 - momentum)


FEATURE_MEAN_MOMENTUM = 0.99
"""Of the running mean of the teacher's features; the first updates count alike, so that none of them stays in it."""


class RegionBatchNorm(nn.BatchNorm1d):
    """Batch norm over regions that falls back to its running statistics where a batch holds fewer than two."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalised (N, D) features."""
        if self.training and features.shape[0] < 2:
            # One region has no variance: normalising by it would erase the feature.
            return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(features)


class ProjectionHead(nn.Sequential):
    """Linear, batch norm, ReLU, linear: the shape of both projector and predictor."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int):
        first, last = nn.Linear(in_size, hidden_size), nn.Linear(hidden_size, out_size)
        super().__init__(first, RegionBatchNorm(hidden_size), nn.ReLU(), last)


class DecodePosPreTrainedModel(PreTrainedModel):
    """What all DecodePos models share: configuration, initialisation, loading from a backbone's checkpoint."""

    config: DecodePosConfig
    base_model_prefix = "decodepos"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    # A pre-training checkpoint also loads as a feature extractor, without a report of parts that has no use for.
    _keys_to_ignore_on_load_unexpected = [r"^teacher\.", r"^projector\.", r"^predictor\.", r"^feature_mean"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # torch's own default; transformers' would be normal(0, 0.02)
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight.shape[1])
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise everything that no checkpoint filled (transformers' `init` functions skip what one did)."""
        super().initialize_weights()
        if self.config.zero_init_residual:
            for module in self.modules():
                if isinstance(module, ResNetBasicLayer | ResNetBottleNeckLayer):
                    last: Any = module.layer[-1]
                    init.zeros_(last.normalization.weight)

    @classmethod
    def from_backbone(cls, backbone: str | Path | PreTrainedModel, **config_kwargs: Any) -> Self:
        """This class around the weights of any backbone, with fresh heads and further fields of `DecodePosConfig`.

        The backbone is a Hub id, a local folder, or an already loaded model: one with a backbone class, or of
        `AutoModel`'s class. The mean and deviation of its pixels are those that the preprocessor file beside it names,
        else ImageNet's.
        """
        if isinstance(backbone, PreTrainedModel):
            loaded = backbone
        else:
            loaded = _load_backbone(backbone)
            mean, std = pixel_statistics(str(backbone))
            config_kwargs = {"image_mean": mean, "image_std": std} | config_kwargs
        backbone_config = copy.deepcopy(loaded.config)
        backbone_config.name_or_path = ""  # where it lay on this machine is nobody's business
        with unusable_if_it_fails("the configuration"):
            config = DecodePosConfig(backbone_config=backbone_config, **config_kwargs)
        model = cls(config)
        base: Any = getattr(model, cls.base_model_prefix, model)
        report = base.backbone.load_state_dict(loaded.state_dict(), strict=False)
        foreign = [key for key in (*report.missing_keys, *report.unexpected_keys) if not is_map_norm(key)]
        if foreign:
            raise ValueError(
                f"the weights of this {type(loaded).__name__} do not fit a {type(base.backbone).__name__} (first "
                f"difference: {foreign[0]}). Pass the folder or Hub id it came from, or load it with a backbone class."
            )
        if isinstance(model, DecodePosForPreTraining):
            model.copy_student_to_teacher()
        return model


class DecodePosModel(DecodePosPreTrainedModel):
    """A backbone that embeds regions.

    ```python
    model = DecodePosModel.from_pretrained("runs/scenes_smoke/export/pretraining")
    output = model(pixel_values, regions=[boxes_of_image_0, boxes_of_image_1])   # boxes: (R_i, 4), xyxy in [0, 1]
    output.region_embeddings[output.valid_regions]                               # (N, D)
    ```
    """

    def __init__(self, config: DecodePosConfig):
        super().__init__(config)
        self.backbone = _build_backbone(config.backbone_config, config.stage_names[-1:])
        self.config = _config_with(config, self.backbone.config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        regions: Tensor | list[Tensor] | None = None,
        valid_regions: Tensor | None = None,
        output_hidden_states: bool | list[int] | None = None,
        **kwargs: Any,
    ) -> DecodePosModelOutput:
        """Features of normalised (B, 3, H, W) images, or of their regions in a form that `check_regions` takes."""
        _refuse_unknown(self, kwargs)
        wanted = _wanted_states(self, output_hidden_states)
        states: list[Tensor] | None = [] if wanted else None
        if regions is None:
            feature_map = self.feature_map(pixel_values, states)
            last = self.apply_region_stage(feature_map)
            if states is not None and self.config.splits_backbone:
                states.append(last)
            output = DecodePosModelOutput(
                feature_map=feature_map, last_hidden_state=last, pooler_output=last.mean((2, 3))
            )
        else:
            self._check_pixels(pixel_values)
            checked = check_regions(regions, pixel_values.shape[0], valid_regions, pixel_values.device)
            self.check_map_covers(pixel_values)
            feature_map = self.feature_map(pixel_values, states)
            rows = self.embed_regions(feature_map, checked, self.config.region_bins)
            output = DecodePosModelOutput(
                feature_map=feature_map, region_embeddings=unflatten(rows, checked.valid), valid_regions=checked.valid
            )
        output.hidden_states = _chosen(states, wanted)
        return output

    def feature_map(self, pixel_values: Tensor, hidden_states: list[Tensor] | None = None) -> Tensor:
        """(B, C, H, W) map that regions are pooled from; what comes before it goes into `hidden_states`."""
        self._check_pixels(pixel_values)
        if not self.config.splits_backbone:
            if self.config.map_channels is not None:
                return last_map(self.backbone, pixel_values, hidden_states)
            output = self.backbone(pixel_values, output_hidden_states=hidden_states is not None)
            if hidden_states is not None:
                hidden_states += output.hidden_states
            return output.feature_maps[-1]
        hidden = self.backbone.embedder(pixel_values)
        states = [hidden]
        for stage in self.backbone.encoder.stages[:-1]:
            hidden = stage(hidden)
            states.append(hidden)
        if hidden_states is not None:
            hidden_states += states
        return hidden

    def _check_pixels(self, pixel_values: Tensor) -> None:
        least = _smallest_side(self.backbone.config)
        if pixel_values.ndim != 4 or min(pixel_values.shape[-2:]) < least:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; expected (B, channels, height, width) with sides"
                f" of at least {least} pixels for this {self.backbone.config.model_type} backbone."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values are {pixel_values.dtype}; expected normalised floats (an image processor's)."
            )

    def apply_region_stage(self, features: Tensor) -> Tensor:
        """The part of the backbone that runs on regions: a ResNet's last stage, nothing for other backbones."""
        if not self.config.splits_backbone:
            return features
        stage = self.backbone.encoder.stages[-1]
        if features.shape[0] != 1 or max(features.shape[2:]) > 2:
            return stage(features)
        # A single region that this stage halves to a single cell has no variance: fall back as `RegionBatchNorm` does.
        norms = [module for module in stage.modules() if type(module) is nn.BatchNorm2d and module.training]
        for norm in norms:
            norm.eval()
        features = stage(features)
        for norm in norms:
            norm.train()
        return features

    def embed_regions(self, feature_map: Tensor, regions: Regions, bins: int, offset: Offset | None = None) -> Tensor:
        """(N, D) embeddings of the real regions, image by image; `offset` as `pool_regions` takes it, or the config's.

        Padding rows are dropped before the region stage, so they reach neither values nor batch statistics.
        """
        if offset is None:
            offset = cell_offset(self.config.map_stride) if self.config.centre_cells else 0.0
        pooled = pool_regions(feature_map, regions.boxes, bins, self.config.region_sampling_ratio, offset)
        # Select rows while channels come last in memory, so that the convolutions find the layout they like.
        rows = pooled.permute(0, 1, 3, 4, 2)[regions.valid].permute(0, 3, 1, 2)
        if rows.shape[0] == 0:
            return rows.new_zeros((0, self.config.hidden_size))
        features = self.apply_region_stage(rows)
        if regions.masks is None:
            return features.mean((2, 3))
        # A mask is its box, of which only the covered part is averaged.
        cover = average_in_bins(regions.masks.to(torch.float32), regions.boxes, features.shape[-1])[regions.valid]
        cover = (cover / cover.sum((1, 2), keepdim=True)).to(features.dtype)
        return (features * cover[:, None]).sum((2, 3))

    def check_map_covers(self, pixel_values: Tensor) -> None:
        """Refuse image sides the map would cover more or less of than the boxes refer to."""
        stride = _side_unit(self.backbone.config)
        if any(side % stride for side in pixel_values.shape[-2:]):
            raise ValueError(
                f"images are {tuple(pixel_values.shape[-2:])} pixels; with regions, {self.backbone.config.model_type} "
                f"needs multiples of {stride}: the map must cover what boxes refer to. Resize or pad them."
            )


class DecodePosBackbone(BackboneMixin, DecodePosPreTrainedModel):
    """The backbone alone, with the feature maps that transformers' detectors and segmenters take.

    Load it by Hub id through `AutoBackbone`, from a local folder through `DecodePosBackbone.from_pretrained`.
    """

    has_attentions = False
    # The backbone inside installs its own hooks for its maps. With a second set, transformers records each map twice
    # and returns the wrong ones.
    _output_capturing_hooks_installed = True

    def __init__(self, config: DecodePosConfig):
        super().__init__(config)
        self.backbone = _build_backbone(config.backbone_config, config.out_features)
        self.config = _config_with(config, self.backbone.config)
        self.num_features = list(getattr(self.backbone, "num_features", [config.hidden_size]))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | list[int] | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Feature maps of the stages in `config.out_features`."""
        _refuse_unknown(self, kwargs)
        wanted = _wanted_states(self, output_hidden_states)
        if self.config.map_channels is not None:
            states: list[Tensor] | None = [] if wanted else None
            maps = (last_map(self.backbone, pixel_values, states),)
            return BackboneOutput(feature_maps=maps, hidden_states=_chosen(states, wanted))
        output = self.backbone(pixel_values, output_hidden_states=bool(wanted))
        return BackboneOutput(feature_maps=output.feature_maps, hidden_states=_chosen(output.hidden_states, wanted))


class DecodePosForPreTraining(DecodePosPreTrainedModel):
    """Student and teacher, their projectors, the student's predictor, and the losses between their views."""

    main_input_name = "views"
    feature_mean: Tensor  # (C,) running mean of the teacher's features, where the configuration wants one
    feature_mean_updates: Tensor

    def __init__(self, config: DecodePosConfig):
        super().__init__(config)
        self.decodepos = DecodePosModel(config)
        self.config = self.decodepos.config
        self.projector = self._build_head(config.hidden_size)
        self.predictor = self._build_head(config.projection_size) if config.use_predictor else nn.Identity()
        self.teacher: Any = nn.ModuleDict(
            {"decodepos": DecodePosModel(config), "projector": self._build_head(config.hidden_size)}
        )
        if config.centre_features:
            self.register_buffer("feature_mean", torch.zeros(config.hidden_size))
            self.register_buffer("feature_mean_updates", torch.zeros((), dtype=torch.int64))
        self.post_init()

    def _build_head(self, in_size: int) -> nn.Module:
        if not self.config.use_heads:
            return nn.Identity()
        return ProjectionHead(in_size, self.config.projector_hidden_size, self.config.projection_size)

    @property
    def student(self) -> nn.ModuleDict:
        """The parts of the student that the teacher has too."""
        return nn.ModuleDict({"decodepos": self.decodepos, "projector": self.projector})

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what no checkpoint filled; a teacher that is not in the file starts as the student."""
        super().initialize_weights()
        self.copy_student_to_teacher()

    @torch.no_grad()
    def copy_student_to_teacher(self) -> None:
        """Make the teacher equal to the student, except for weights a checkpoint gave it, and freeze it."""
        source = self.student.state_dict(keep_vars=True)
        for name, target in self.teacher.state_dict(keep_vars=True).items():
            init.copy_(target, source[name])
        self.teacher.requires_grad_(False)

    def update_teacher(self, momentum: float) -> None:
        """One step of the teacher towards the student. Call it once per step, before the forward pass (as in SoCo).

        With a momentum of 1 the teacher is frozen.
        """
        if momentum != 1:
            ema_update(self.teacher, self.student, momentum)

    @torch.no_grad()
    def update_feature_mean(self, sums: Tensor) -> None:
        """One step of the running mean of the teacher's features towards their mean in one update.

        Call it once per step, after the forward passes, so that how a batch is split changes nothing.

        Args:
            sums: (C + 1,) sum of the features over all processes and micro-batches, and their number.
        """
        if sums[-1] > 0:
            self.feature_mean_updates += 1
            share = max(1 - FEATURE_MEAN_MOMENTUM, 1 / int(self.feature_mean_updates))
            self.feature_mean.lerp_(sums[:-1] / sums[-1], share)

    @can_return_tuple
    def forward(
        self,
        views: Mapping[str, View],
        objective: Objective | None = None,
        num_pairs: Mapping[tuple[str, str], Tensor | float] | None = None,
        **kwargs: Any,
    ) -> DecodePosForPreTrainingOutput:
        """Loss between student and teacher views, each with the same regions in the same order.

        The objective is both modules of the paper by default. `num_pairs` is the global number of matched regions per
        pair; see `region_similarity_loss`.
        """
        _refuse_unknown(self, kwargs)
        if kwargs.get("output_hidden_states"):
            raise ValueError("a pre-training model takes several views; ask its `.decodepos` for hidden states.")
        objective = objective or OBJECTIVES["both"]
        self._check_objective(objective)
        missing = [name for name in objective.views if name not in views]
        if missing:
            raise ValueError(f"the objective needs the views {objective.views}; missing: {', '.join(missing)}.")
        batch = _batch_size(views)
        with_heads = objective.of_heads()
        features, predictions = {}, {}
        for name in objective.student_views:
            heads = (self.projector, self.predictor) if name in with_heads.student_views else ()
            features[name], predictions[name] = self._embed(self.decodepos, views, name, objective, *heads)
        teacher_features, targets = self.embed_by_teacher(views, objective)
        valid = {name: _spread(views[name].valid_regions, views[name].rows, batch) for name in objective.views}
        centred = self._centre(features), self._centre(teacher_features)
        loss, terms = pair_loss(predictions, targets, valid, objective, num_pairs, centred)
        return DecodePosForPreTrainingOutput(
            loss=loss,
            terms=terms,
            features=features,
            teacher_features=teacher_features,
            predictions=predictions,
            targets=targets,
        )

    @torch.no_grad()
    def embed_by_teacher(
        self, views: Mapping[str, View], objective: Objective
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The teacher's features of its views, (B, R, C) by name, and what its head makes of them."""
        features, targets = {}, {}
        for name in objective.teacher_views:
            head = (self.teacher["projector"],) if name in objective.of_heads().teacher_views else ()
            features[name], targets[name] = self._embed(self.teacher["decodepos"], views, name, objective, *head)
        return features, targets

    def _check_objective(self, objective: Objective) -> None:
        needed = {"use_heads": objective.of_heads(), "centre_features": objective.of_features()}
        for flag, part in needed.items():
            if part.terms and not getattr(self.config, flag):
                raise ValueError(f"loss term {part.terms[0].name!r} needs a model that was built with {flag}=True.")

    def _centre(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features less the running mean of the teacher's: what all regions share says nothing of any one."""
        if not self.config.centre_features:
            return {}
        return {name: rows.float() - self.feature_mean for name, rows in features.items()}

    def _embed(
        self, model: DecodePosModel, views: Mapping[str, View], name: str, objective: Objective, *heads: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """(B, R, C) features of one view's regions and (B, R, D) what the heads make of them; zero where not valid."""
        view, batch = views[name], _batch_size(views)
        regions = check_regions(view.boxes, len(view.pixel_values), view.valid_regions, view.pixel_values.device)
        if not regions.valid.any():
            return self._embed_nothing(model, view, batch, *heads)
        model.check_map_covers(view.pixel_values)
        if view.is_alone:
            pictures = view.pixel_values[regions.valid].contiguous(memory_format=torch.channels_last)
            features = model(pictures).pooler_output
        else:
            # A view drawn at half size is pooled to half as many bins (SoCo: 14 at 224 pixels, 7 at 112).
            full_size = max(views[name].pixel_values.shape[-1] for name in objective.views)
            bins = max(1, round(self.config.region_bins * view.pixel_values.shape[-1] / full_size))
            features = model.embed_regions(model.feature_map(view.pixel_values), regions, bins)
        rows = features
        for head in heads:
            rows = head(rows)
        spread_features, spread_rows = (
            _spread(unflatten(part, regions.valid), view.rows, batch) for part in (features, rows)
        )
        return spread_features, spread_rows

    def _embed_nothing(
        self, model: DecodePosModel, view: View, batch: int, *heads: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """Zeros for a view without any region, from which gradients of zero still reach every weight.

        Distributed training waits for all gradients. Synchronised batch norms wait for one another too, so what holds
        any runs on no image at all: it takes part, and adds nothing to the others' statistics.
        """
        parts = (model, *heads)
        touched = torch.stack([p.sum() for part in parts for p in part.parameters()]).sum() * 0
        # Without autocast: other processes exchange float32 statistics, and no image has those of its own dtype.
        with torch.autocast(view.boxes.device.type, enabled=False):
            rows = view.boxes.new_zeros((0, self.config.hidden_size))
            if _is_synchronised(model):
                nothing = view.pixel_values.flatten(0, -4)[:0].float()
                rows = model.apply_region_stage(model.feature_map(nothing)).mean((2, 3))
            for head in heads:
                rows = head(rows) if _is_synchronised(head) else rows
            touched = touched + rows.sum() * 0
        shape = (batch, view.boxes.shape[1])
        zeros = view.boxes.new_zeros((*shape, self.config.hidden_size))
        width = self.config.projection_size if heads else self.config.hidden_size
        return zeros + touched, touched * view.boxes.new_zeros((*shape, width))


def _refuse_unknown(model: PreTrainedModel, options: Mapping[str, Any]) -> None:
    """Raises TypeError for an argument that neither the model nor any in transformers takes: it was mistyped."""
    if unknown := [name for name in options if name not in TransformersKwargs.__annotations__]:
        own = [name for name in inspect.signature(model.forward).parameters if name != "kwargs"]
        raise TypeError(f"{type(model).__name__} takes no argument {unknown[0]!r}; expected one of {', '.join(own)}.")
    if options.get("output_attentions"):
        raise ValueError(f"output_attentions is true, but a {type(model).__name__} gives no attentions.")


def _wanted_states(model: PreTrainedModel, asked: bool | list[int] | None) -> bool | list[int]:
    """Whether hidden states are wanted, or the numbers of those that are."""
    return (model.config.output_hidden_states if asked is None else asked) or False


def _chosen(states: Sequence[Tensor] | None, wanted: bool | list[int]) -> Any:
    """All hidden states, or those of the wanted numbers and None for the others; None where none is wanted."""
    if not states or not wanted:
        return None
    kept = range(len(states)) if wanted is True else {number % len(states) for number in wanted}
    return tuple(state if number in kept else None for number, state in enumerate(states))


def _batch_size(views: Mapping[str, View]) -> int:
    """Images in a batch, of which some views show a part."""
    return max(view.valid_regions.shape[0] for view in views.values())


def _is_synchronised(part: nn.Module) -> bool:
    return any(isinstance(module, nn.SyncBatchNorm) for module in part.modules())


def _spread(part: Tensor, rows: Tensor | None, batch: int) -> Tensor:
    """A view of some images laid out over the whole batch; zero (or False) for the images it does not show."""
    if rows is None:
        return part
    return part.new_zeros((batch, *part.shape[1:])).index_copy(0, rows, part)


def unflatten(rows: Tensor, valid: Tensor) -> Tensor:
    """(B, R, D) from the (N, D) rows of the valid regions; zero elsewhere."""
    padded = rows.new_zeros((*valid.shape, rows.shape[-1]))
    padded[valid] = rows
    return padded


def _build_backbone(config: Any, out_features: list[str]) -> Any:
    config = copy.deepcopy(config)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        return AutoModel.from_config(config)
    config.out_features = list(out_features)
    return AutoBackbone.from_config(config)


def _config_with(config: DecodePosConfig, backbone_config: Any) -> DecodePosConfig:
    """A model's own config, which holds that of its own backbone: models of one config return different maps."""
    config = copy.copy(config)
    config.backbone_config = backbone_config
    return config


def _load_backbone(name_or_path: str | Path) -> Any:
    """The backbone of a checkpoint through its concrete class; `AutoBackbone` cannot read a local folder.

    Of a network without one, the plain model.
    """
    config = read_config(name_or_path)
    if isinstance(config, DecodePosConfig):
        return load_whole(DecodePosModel, name_or_path).backbone
    backbone_class: Any = AutoModel
    if type(config) in MODEL_FOR_BACKBONE_MAPPING:
        backbone_class = MODEL_FOR_BACKBONE_MAPPING[type(config)]
        config.out_features = list(config.stage_names)  # with the norms of every map
    else:
        _check_gives_map(name_or_path, config)
    return load_whole(backbone_class, name_or_path, config=config)


def _check_gives_map(name_or_path: str | Path, config: Any) -> None:
    try:
        map_channels(config)
    except ValueError as error:
        raise ValueError(f"{name_or_path}: {error}") from error


def _smallest_side(config: Any) -> int:
    """Smallest image side the backbone can turn into at least one map cell."""
    return _side_unit(config) if "convnext" in config.model_type else patch_size(config)


def _side_unit(config: Any) -> int:
    """Pixels that image sides must be a multiple of, for the last map to cover the image.

    1 for a ResNet or a MobileNet, whose padded map is taken to cover it (as in SoCo).
    """
    if "convnext" in config.model_type:  # a stem of 4, then halved without padding between stages
        return 4 * 2 ** (len(config.depths) - 1)
    if "swin" in config.model_type:  # halved between stages, padded to whole windows
        return patch_size(config) * 2 ** (len(config.depths) - 1)
    return patch_size(config)


if __package__ == "modeling_decodepos":  # not where transformers loads a copy of this file from a Hub
    AutoModel.register(DecodePosConfig, DecodePosModel)
    AutoBackbone.register(DecodePosConfig, DecodePosBackbone)
    AutoModelForPreTraining.register(DecodePosConfig, DecodePosForPreTraining)
