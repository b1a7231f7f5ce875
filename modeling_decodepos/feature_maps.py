"""The map of a network that has no backbone class in transformers: its last hidden state, a map or patches in rows.

Shapes: B pictures, C channels, h w cells, N tokens.
"""

import copy
import inspect
import json
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel


def last_map(module: Any, pixels: Tensor, hidden_states: list[Tensor] | None = None) -> Tensor:
    """(B, C, h, w) last hidden state of any vision model in transformers; all of them go into `hidden_states`."""
    wanted = {} if hidden_states is None else {"output_hidden_states": True}
    output = module(pixels, **resizing(module), **wanted)
    if hidden_states is not None:
        hidden_states += output.hidden_states or (output.last_hidden_state,)
    return as_map(output.last_hidden_state, pixels, module.config)


def as_map(state: Tensor, pixels: Tensor, config: Any) -> Tensor:
    """(B, C, h, w) from such a map, or from tokens (B, N, C) of which the last h * w are the patches'."""
    if state.ndim == 4:
        return state
    if state.ndim == 3:
        patch = patch_size(config)
        height, width = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        if 0 <= state.shape[1] - height * width <= 16:
            return state[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
    raise ValueError(
        f"a hidden state of shape {tuple(state.shape)} is no feature map: expected (B, C, h, w), or (B, N, C) tokens "
        f"with one per patch of {patch_size(config)} pixels. Of a masked auto-encoder, which hides patches, load the "
        "encoder as the plain ViT that it is."
    )


def resizing(module: Any) -> dict[str, bool]:
    """What a forward pass must be told to take pictures of other sizes than the model's own."""
    name = "interpolate_pos_encoding"
    return {name: True} if name in inspect.signature(module.forward).parameters else {}


def patch_size(config: Any) -> int:
    """Side of a patch in pixels; 1 for networks without patches."""
    patch = getattr(config, "patch_size", 1) or 1
    return patch if isinstance(patch, int) else int(max(patch))


def map_channels(config: Any) -> int:
    """Channels of the map that a network of this config gives; ValueError where it gives none."""
    network = describe(config)
    if network not in _CHANNELS:  # half a second of building it
        _CHANNELS[network] = _try_out(config)
    return _CHANNELS[network]


_CHANNELS: dict[str, int] = {}
# Of a config: where its weights came from and how they are kept, which is no part of the network.
_ORIGIN = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def describe(config: Any) -> str:
    """A text that is the same for configs of one network, whatever weights they came with."""
    values = {key: value for key, value in config.to_dict().items() if key not in _ORIGIN}
    return f"{type(config).__name__} {json.dumps(values, sort_keys=True, default=str)}"


def _try_out(config: Any) -> int:
    own = getattr(config, "image_size", None) or 64
    side = own if isinstance(own, int) else max(own)
    try:
        with torch.device("meta"):  # sizes without numbers
            model = AutoModel.from_config(copy.deepcopy(config)).eval()
            pixels = torch.empty(1, getattr(config, "num_channels", 3), side, side)
            return last_map(model, pixels).shape[1]
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"a {config.model_type!r} model gives no feature maps: transformers has no backbone class for it, and its "
            "last hidden state is no map. Use one that has, for example resnet, convnext, convnextv2, swin, dinov2, "
            f"dinov3_vit, mobilenet_v2 or vit. ({str(error).splitlines()[0]})"
        ) from error
