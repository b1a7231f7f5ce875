"""Where the cells of a map lie: from the operations of a network, from its gradients, and how maps are read by it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    EfficientNetConfig,
    EfficientNetModel,
    MobileNetV2Config,
    MobileNetV2Model,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
)

from modeling_decodepos.data.schema import SEGMENTATION_IGNORE
from modeling_decodepos.diagnosis.models.cells import Cells, measure_cells, trace_cells
from modeling_decodepos.diagnosis.models.features import pool_boxes, pool_stages
from modeling_decodepos.diagnosis.models.load import load_model, with_reading
from modeling_decodepos.diagnosis.models.readings import READINGS, choose_reading
from training.evaluation.annotated_images import Picture
from training.evaluation.segmentation_data import enlarge, stack_labels

SIDE = 96


class Shifted(nn.Module):
    """Averages of patches of 8 pixels whose grid begins `shift` pixels further right and down; nothing is learned."""

    def __init__(self, shift: int):
        super().__init__()
        self.shift = shift

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        moved = F.pad(pixels, (-self.shift, self.shift, -self.shift, self.shift), mode="constant")
        return F.avg_pool2d(moved, 8)


def same(kernel: int, stride: int) -> nn.Module:
    """A convolution that pads as TensorFlow does: what is left over goes behind."""
    extra = kernel - stride
    return nn.Sequential(nn.ZeroPad2d((extra // 2, extra - extra // 2) * 2), nn.Conv2d(3, 3, kernel, stride))


def known(network: nn.Module, side: int = SIDE) -> Cells:
    found = trace_cells(lambda pixels: [network(pixels)], torch.zeros(1, 3, side, side))[0]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("network", "stride", "start"),
    [
        (nn.Conv2d(3, 4, 16, 16), 16, 8.0),  # a patch embedding
        (nn.Conv2d(3, 4, 3, 2, 1), 2, 0.5),
        (nn.Conv2d(3, 4, 7, 2, 3), 2, 0.5),
        (nn.Conv2d(3, 4, 3, 1, 2, dilation=2), 1, 0.5),
        (nn.Conv2d(3, 4, 2, 2), 2, 1.0),
        (nn.Conv2d(3, 4, 1, 2), 2, 0.5),  # the shortcut of a residual block
        (nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)), 8, 0.5),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(2)), 4, 1.5),
        (same(3, 2), 2, 1.5),
        (nn.Sequential(same(3, 2), same(3, 2)), 4, 3.5),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")), 1, 0.0),
        (Shifted(3), 8, 7.0),
        (Shifted(0), 8, 4.0),
    ],
    ids=str,
)
def test_what_is_known_follows_from_kernels_strides_and_paddings(network, stride, start):
    assert known(network) == Cells((stride, stride), (start, start))


@pytest.mark.parametrize(
    ("network", "patches", "side"),
    [
        (ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])), False, 96),
        (MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.25, tf_padding=False)), False, 96),
        (ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])), True, 96),
        (
            SwinModel(SwinConfig(embed_dim=8, depths=[1, 1, 2], num_heads=[1, 1, 1], window_size=3, image_size=96)),
            True,
            96,
        ),
        (
            Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8)),
            True,
            96,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_cells_of_patch_networks_are_patches_and_padded_convolutions_lie_on_their_first_pixel(network, patches, side):
    model = load_model(network, size_px=side)
    cells = trace_cells(model.maps, torch.zeros(1, 3, side, side))
    for found, feature_map in zip(cells, model.maps(torch.zeros(1, 3, side, side)), strict=True):
        stride = side / feature_map.shape[-1]
        assert found == Cells((stride, stride), (stride / 2, stride / 2) if patches else (0.5, 0.5))


def test_tensorflow_padding_depends_on_the_size_and_is_seen():
    """What is left over goes behind: the cells of even sides lie on the last of their pixels."""
    config = EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320)
    network = load_model(EfficientNetModel(config), size_px=96)
    cells = trace_cells(network.maps, torch.zeros(1, 3, 96, 96))[-1]
    assert cells == Cells((32, 32), (31.5, 31.5))


def test_what_the_operations_do_not_tell_is_not_made_up():
    def scrambled(pixels: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,hk,wl->bckl", pixels, torch.ones(SIDE, 6), torch.ones(SIDE, 6))

    assert trace_cells(lambda pixels: [scrambled(pixels)], torch.zeros(1, 3, SIDE, SIDE)) == [None]
    with pytest.raises(ValueError, match="scrambled: how the cells of map 1 lie .* Take the reading 'measured'"):
        load_model(scrambled, size_px=SIDE, reading="known")


@pytest.mark.parametrize("shift", [-3, -1, 0, 2, 3])
def test_a_planted_shift_is_measured_to_a_tenth_of_a_cell(shift):
    pixels = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    (found,) = measure_cells(lambda x: [Shifted(shift)(x)], pixels)
    for start, stride in zip(found.start, found.stride, strict=True):
        assert stride == 8
        assert abs(start - (4 + shift)) < 0.8


@pytest.mark.parametrize("shift", [0, 3])
def test_a_network_that_also_looks_at_the_whole_picture_is_measured_as_well(shift):
    """Half of each cell is the mean of all: it draws every centroid towards the middle, and the offset with it."""

    def network(pixels: torch.Tensor) -> list[torch.Tensor]:
        found = Shifted(shift)(pixels)
        return [found + 6 * found.mean((2, 3), keepdim=True)]

    pixels = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    (found,) = measure_cells(network, pixels)
    assert all(abs(start - (4 + shift)) < 0.8 for start in found.start)


def test_measured_agrees_with_known_for_random_convolutions():
    torch.manual_seed(0)
    convolutions = nn.Sequential(*[part for _ in range(4) for part in (nn.Conv2d(3, 3, 3, 2, 1), nn.Tanh())]).eval()
    pixels = torch.randn(16, 3, SIDE, SIDE)
    (found,) = measure_cells(lambda x: [convolutions(x)], pixels)
    for start, stride in zip(found.start, found.stride, strict=True):
        assert abs(start - known(convolutions).start[0]) < 0.1 * stride


def test_reading_by_cells_finds_what_is_drawn_in_the_box_wherever_the_grid_lies():
    """A ramp along x: the mean of a box is its centre. Half a cell of error is four pixels."""
    ramp = torch.arange(SIDE, dtype=torch.float32).add(0.5).expand(1, 3, SIDE, SIDE)
    box = torch.tensor([[24, 24, 56, 56]]) / SIDE
    for shift in (-3, 0, 3):
        feature_map = Shifted(shift)(ramp)
        offset = known(Shifted(shift)).offset(SIDE, feature_map)
        assert abs(float(pool_boxes(feature_map, [box], offset)[0, 0]) - 40) < 1e-3
        assert abs(float(pool_boxes(feature_map, [box])[0, 0]) - 40 - shift) < 1e-3


def test_readings_of_a_model():
    """`known` of a ResNet is (1 - 1/stride) / 2 cells further, `legacy` half a cell, `aligned` none."""
    torch.manual_seed(0)
    network = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])).eval()
    pixels = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    boxes = [torch.tensor([[0.2, 0.3, 0.7, 0.9]])]
    expected = {"aligned": 0.0, "legacy": 0.5, "known": (1 - 1 / 32) / 2}
    for reading, offset in expected.items():
        model = load_model(network, size_px=SIDE, reading=reading)
        maps = model(pixels)
        right, down = pair if isinstance(pair := model.offset(3, maps[3]), tuple) else (pair, pair)
        assert right == pytest.approx(offset) and down == pytest.approx(offset)
        assert torch.allclose(pool_stages(model, maps, boxes)[3], pool_boxes(maps[3], boxes, offset), atol=1e-5)
    own = load_model(network, size_px=SIDE)
    assert own.reading == "aligned" and with_reading(own, "known").fresh(0).reading == "known"
    assert dataclasses.replace(own).offset(3, own(pixels)[3]) == 0.0


def test_a_reading_is_chosen_by_name_and_by_its_former_flag():
    assert choose_reading("own") == "own" and choose_reading("own", True) == "known"
    assert set(READINGS) == {"own", "aligned", "legacy", "known", "measured"}
    with pytest.raises(ValueError, match="reading is 'centred'; expected one of own, aligned"):
        choose_reading("centred")
    with pytest.raises(ValueError, match="centre_cells is another name for the reading known, but reading is legacy"):
        choose_reading("legacy", True)


def test_maps_are_enlarged_and_labelled_by_where_their_cells_lie():
    """A ramp comes back as it was, and each cell gets the class of the pixel it lies on, wherever the grid begins."""
    ramp = torch.arange(SIDE, dtype=torch.float32).add(0.5).expand(1, 1, SIDE, SIDE)
    labels = (ramp[0, 0] / 4).to(torch.uint8)
    for shift in (-3, 0, 3):
        feature_map = F.avg_pool2d(F.pad(ramp, (-shift, shift, -shift, shift)), 8)
        cells = Cells((8, 8), (4 + shift, 4 + shift))
        offset = cells.offset(SIDE, feature_map)
        full = enlarge(feature_map, (SIDE, SIDE), offset)
        assert torch.allclose(full[..., 20:-20, 20:-20], ramp[..., 20:-20, 20:-20], atol=1e-3)
        picture = Picture("1", torch.zeros(3, SIDE, SIDE), (SIDE, SIDE), torch.zeros(0, 4), torch.zeros(0), labels)
        found = stack_labels([picture], 12, 12, offset)[0]
        inside = found != SEGMENTATION_IGNORE
        places = (torch.arange(12) * 8 + 4 + shift).clamp(0, SIDE - 1)
        assert inside.sum() >= 11 * 11
        assert torch.equal(found[inside], labels[places][:, places][inside].long())
    assert torch.equal(enlarge(feature_map, (50, 70)), F.interpolate(feature_map, (50, 70), mode="bilinear"))
