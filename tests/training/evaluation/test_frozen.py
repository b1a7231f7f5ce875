"""Folding batch norms and spreading over cores: faster, and nothing else."""

import threading

import pytest
import torch
from torch import Tensor, nn
from transformers import MobileNetV2Config, MobileNetV2Model, ResNetBackbone, ResNetConfig

from training.evaluation.frozen import each_on_a_core, fold_batch_norms
from training.evaluation.models import CPU_PICTURES, MapModel, load_model

EXAMPLES = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
BOX = torch.tensor([[0.1, 0.2, 0.7, 0.9]])


def lived_in(net: nn.Module) -> nn.Module:
    """The network with batch norms that have seen something, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -1.0, 1.0), (module.running_var, 0.3, 3.0), (module.weight.data, 0.5, 2.0),
                (module.bias.data, -1.0, 1.0),
            ):  # fmt: skip
                values.uniform_(low, high, generator=generator)
    return net.eval()


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def pixels(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution, its norm and an activation, put together by `forward` as a test likes."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.conv2 = nn.Conv2d(3, 3, 1)
        self.make = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.make(self, x)


def call(net: nn.Module, example: Tensor) -> Tensor:
    return net(example)


def test_a_folded_network_has_no_norms_gives_the_same_and_leaves_the_other_as_it_was():
    net = lived_in(Net(lambda net, x: net.conv2(net.act(net.norm(net.conv(x))))))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    folded = fold_batch_norms(net, call, EXAMPLES)
    assert (norms(net), norms(folded)) == (1, 0)
    assert folded.act.inplace and not net.act.inplace
    others = torch.randn(5, 3, 20, 20)
    assert torch.allclose(folded(others), net(others), atol=1e-5)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.conv(net.act(net.norm(x))),  # the norm comes first
        lambda net, x: net.norm(net.conv2(net.conv(x))) + net.norm(net.conv(x)),  # one norm after two convolutions
        lambda net, x: net.norm(y := net.conv(x)) + y,  # what the norm takes is used without it too
        lambda net, x: net.act(y := net.norm(net.conv(x))) + y,  # what the activation takes is used after it too
        lambda net, x: net.norm(net.conv(x) * 2),
    ],
    ids=["first", "shared", "skipped", "in place", "scaled"],
)
def test_what_would_change_is_not_folded(forward):
    net = lived_in(Net(forward))
    assert fold_batch_norms(net, call, EXAMPLES) is net


def test_a_norm_that_learns_is_not_folded():
    net = Net(lambda net, x: net.norm(net.conv(x))).train()
    assert fold_batch_norms(net, call, EXAMPLES) is net


def test_a_network_that_gives_nan_stays():
    net = lived_in(Net(lambda net, x: net.norm(net.conv(x))))
    net.conv.weight.data.fill_(float("nan"))
    assert fold_batch_norms(net, call, EXAMPLES) is net


def mobilenet() -> MobileNetV2Model:
    torch.manual_seed(0)
    config = MobileNetV2Config(depth_multiplier=0.25, depth_divisible_by=4, min_depth=4)
    return lived_in(MobileNetV2Model(config, add_pooling_layer=False))


def resnet() -> ResNetBackbone:
    torch.manual_seed(0)
    small = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}
    return lived_in(ResNetBackbone(ResNetConfig(**small, layer_type="basic")))


@pytest.mark.parametrize("build", [mobilenet, resnet])
def test_features_are_those_of_the_network_unfolded_picture_by_picture(build):
    model = load_model(build(), 0)
    shown, boxes = pixels(2 * CPU_PICTURES + 3), [BOX] * (2 * CPU_PICTURES + 3)
    boxes[1] = BOX[:0]
    found, dense = model.embed(shown, boxes), model.dense(shown)
    net = model.frozen(shown)
    assert norms(net.module if isinstance(net, MapModel) else net) == 0
    plain = load_model(build(), 0)
    plain._frozen = plain.net
    rows = [plain.embed(one[None], [box]) for one, box in zip(shown, boxes, strict=True) if len(box)]
    maps = [plain.dense(one[None]) for one in shown]
    for one, other in ((found, torch.cat(rows)), (dense, torch.cat(maps))):
        assert (one - other).abs().max() < 1e-4 * other.abs().max()
        assert other.std() > 1e-2 and not one.requires_grad


def test_fine_tuning_gets_the_norms_whatever_was_measured_before():
    model = load_model(resnet(), 0)
    count, before = norms(model.backbone()), model.backbone().state_dict()
    model.embed(pixels(2), [BOX, BOX])
    assert norms(model.backbone()) == count > 0
    assert all(torch.equal(model.backbone().state_dict()[name], value) for name, value in before.items())


def test_a_foreign_callable_is_called_by_one_thread_and_with_few_pictures():
    calls = []

    def foreign(values: Tensor) -> Tensor:
        calls.append((threading.get_ident(), len(values)))
        return values[:, :, ::16, ::16]

    model = load_model(foreign, 0)
    model.embed(pixels(2 * CPU_PICTURES + 1), [BOX] * (2 * CPU_PICTURES + 1))
    assert calls == [(threading.get_ident(), count) for count in (CPU_PICTURES, CPU_PICTURES, 1)]


def test_parts_come_back_in_order_and_torch_keeps_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = list(each_on_a_core(lambda part: (part, torch.get_num_threads(), threading.get_ident()), range(20)))
        assert [part for part, _, _ in found] == list(range(20))
        assert {threads for _, threads, _ in found} == {1}
        assert threading.get_ident() not in {thread for _, _, thread in found}
        later = []
        started = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        started.start()
        started.join()
        assert torch.get_num_threads() == later[0] == 3
    finally:
        torch.set_num_threads(before)


def fail_at_three(part: int) -> int:
    if part == 3:
        raise ValueError(f"number {part}")
    return part


def test_an_error_in_a_part_is_the_callers():
    with pytest.raises(ValueError, match="number 3"):
        list(each_on_a_core(fail_at_three, range(6)))


def test_few_parts_are_taken_ahead():
    taken = []

    def parts():
        for number in range(1000):
            taken.append(number)
            yield number

    found = each_on_a_core(lambda part: part, parts())
    assert [next(found), next(found)] == [0, 1]
    assert len(taken) <= 2 * torch.get_num_threads() + 3
    found.close()
