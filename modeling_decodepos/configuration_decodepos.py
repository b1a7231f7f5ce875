"""Architecture of a DecodePos model. How it is trained is no part of it."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from .imagenet import IMAGE_MEAN, IMAGE_STD


@strict
class DecodePosConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of `DecodePosModel`, `DecodePosBackbone` and `DecodePosForPreTraining`.

    Args:
        backbone_config: Configuration (or its dictionary) of any backbone transformers' `AutoBackbone` can build, or
            of any other network whose last hidden state is a map or holds one token per patch; a ResNet-50 by
            default. A ResNet is split, unless `region_stage` is false: all stages but the last run on the image, the
            last one on regions. Any other backbone runs whole, and regions are pooled from its last map.
        region_stage: Whether a ResNet's last stage runs on regions, as in C4 detectors, or on the image, as whoever
            loads the plain backbone reads it.
        region_bins: Bins per side that a region is pooled to in a full-size view; a view of half the size gets half as
            many (14 and 7 in SoCo for 224 and 112 pixels).
        region_sampling_ratio: Bilinear samples per bin and axis; 0 adapts to the size of the box.
        projector_hidden_size: Width of the hidden layer of projector and predictor.
        projection_size: Size of the embedding the losses compare.
        use_heads: Whether there are a projector and a predictor. Losses that compare features need none.
        centre_features: Whether the pre-training model keeps a running mean of the teacher's features, which losses
            between features subtract.
        use_predictor: Whether the student predicts the teacher's projection through one more network. Without it, and
            without negatives, training is prone to collapse; the switch is there for ablations.
        centre_cells: Whether regions are read half a stride further down and right, where the cells of a ResNet's map
            have their centres; RoIAlign reads them where a map of patches has them.
        image_mean: Mean of the pixels, in [0, 1], that the backbone is given; ImageNet's by default.
        image_std: Their standard deviation.
        map_channels: Channels of the map of a network without a backbone class; found out where it is left out.
        zero_init_residual: Whether a ResNet's blocks start as the identity (weight of their last normalisation at 0).
        out_features: Names of the stages `DecodePosBackbone` returns.
        out_indices: The same as indices.
    """

    model_type = "decodepos"
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    region_stage: bool = True
    region_bins: int = 14
    region_sampling_ratio: int = 0
    projector_hidden_size: int = 4096
    projection_size: int = 256
    use_heads: bool = True
    centre_features: bool = False
    use_predictor: bool = True
    centre_cells: bool = False
    image_mean: list[float] | tuple[float, ...] = IMAGE_MEAN
    image_std: list[float] | tuple[float, ...] = IMAGE_STD
    map_channels: int | None = None
    zero_init_residual: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        saved_type = kwargs.get("model_type", self.model_type)
        if saved_type != self.model_type:  # transformers would go on with a default configuration and random weights
            raise ValueError(
                f"this is the configuration of a {saved_type!r} model, expected {self.model_type!r}. To put a "
                "DecodePos model around another model's weights, call from_backbone(path) instead of "
                "from_pretrained(path)."
            )
        self.backbone_config = _build_backbone_config(self.backbone_config)
        kwargs.pop("stage_names", None)  # always the backbone's, whatever a saved file says
        has_stages = type(self.backbone_config) in MODEL_FOR_BACKBONE_MAPPING
        if not has_stages and self.map_channels is None:
            self.map_channels = _map_channels(self.backbone_config)
        self.stage_names = list(self.backbone_config.stage_names) if has_stages else ["last"]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        """Check that every size is positive."""
        for name in ("region_bins", "projector_hidden_size", "projection_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.centre_cells and not self.splits_backbone:
            backbone: Any = self.backbone_config
            raise ValueError(
                f"centre_cells is true, but the cells of a {backbone.model_type!r} map are patches, read at their "
                "centres already; it is for a ResNet with a region stage, whose convolutions pad. Set it to false."
            )
        if self.region_sampling_ratio < 0:
            raise ValueError(f"region_sampling_ratio is {self.region_sampling_ratio}; expected 0 (adaptive) or more.")

    @property
    def splits_backbone(self) -> bool:
        """Whether the backbone's last stage runs on regions rather than on the image."""
        backbone: Any = self.backbone_config
        return self.region_stage and backbone.model_type == "resnet"

    @property
    def map_stride(self) -> int:
        """Pixels between the cells of the map that a ResNet's regions are pooled from."""
        backbone: Any = self.backbone_config
        halvings = len(backbone.depths) - 2 + bool(backbone.downsample_in_first_stage)
        return 4 * 2**halvings

    @property
    def num_hidden_layers(self) -> int:
        """Stages of a backbone, or layers of a ViT."""
        return len(self.stage_names) - 1

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage, and size of a region embedding."""
        if self.map_channels is not None:
            return self.map_channels
        backbone: Any = self.backbone_config
        if getattr(backbone, "hidden_sizes", None):
            return int(backbone.hidden_sizes[-1])
        if hasattr(backbone, "embed_dim") and hasattr(backbone, "depths"):  # Swin
            return int(backbone.embed_dim * 2 ** (len(backbone.depths) - 1))
        return int(backbone.hidden_size)


def _build_backbone_config(backbone_config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    if backbone_config is None:
        return CONFIG_MAPPING["resnet"]()
    if isinstance(backbone_config, dict):
        model_type: Any = backbone_config.get("model_type")
        if model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"backbone_config['model_type'] is {model_type!r}; expected a model type known to transformers, such "
                "as 'resnet', 'convnext', 'swin' or 'dinov2'."
            )
        backbone_config = CONFIG_MAPPING[model_type].from_dict(backbone_config)
    if backbone_config.model_type == DecodePosConfig.model_type:
        raise ValueError("backbone_config is itself a 'decodepos' configuration; pass the backbone inside it.")
    return backbone_config


def _map_channels(backbone_config: PreTrainedConfig) -> int:
    from .feature_maps import map_channels  # builds the network: needs torch, which configurations do without

    return map_channels(backbone_config)


if __package__ == "modeling_decodepos":  # transformers itself registers a copy of this file that it loads from a Hub
    AutoConfig.register(DecodePosConfig.model_type, DecodePosConfig)
