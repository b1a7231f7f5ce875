"""How long a diagnosis takes, all measures at their default sizes, from the call to the page on disk.

    OMP_NUM_THREADS=2 python -m benchmarks.diagnose

Weights are random, for they do not change the time. Processor time stands beside the time on the wall: divided by the
number of cores it is what a machine with nothing else to do would need at best.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import torch
import transformers
from transformers import PreTrainedModel, ResNetBackbone, ResNetConfig, ViTConfig, ViTModel

from benchmarks.timing import print_machine, print_result, print_table
from modeling_decodepos.diagnosis import diagnose, save_report


def resnet50() -> PreTrainedModel:
    """A ResNet-50 with its four stages."""
    config = ResNetConfig()
    config.out_features = config.stage_names[1:]
    return ResNetBackbone(config)


def resnet18() -> PreTrainedModel:
    """A ResNet-18 with its four stages."""
    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    config.out_features = config.stage_names[1:]
    return ResNetBackbone(config)


def vit_small() -> PreTrainedModel:
    """A ViT-S/16."""
    return ViTModel(ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536), add_pooling_layer=False)


def two_resnet18() -> list[PreTrainedModel]:
    """Two checkpoints of one network, as somebody compares before and after."""
    return [resnet18(), resnet18()]


NETWORKS: dict[str, tuple[Callable[[], PreTrainedModel | list[PreTrainedModel]], float]] = {
    "ResNet-50": (resnet50, 180.0),
    "ResNet-18": (resnet18, 60.0),
    "ViT-S/16": (vit_small, 60.0),
    "ResNet-18, two checkpoints": (two_resnet18, 120.0),
}
"""Networks, and the seconds on two cores that are wanted."""


def main() -> None:
    """Time one diagnosis per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="which to time")
    parser.add_argument("--images", type=int, default=96, help="as decodepos-diagnose takes it")
    parser.add_argument("--size", type=int, default=160, help="as decodepos-diagnose takes it")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print_machine()
    cores = torch.get_num_threads()
    rows, cases = [], {}
    for name in args.networks:
        build, wanted = NETWORKS[name]
        model = build()
        wall, processor = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            save_report(diagnose(model, images=args.images, size_px=args.size), folder)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        cases[name] = {"wall_s": wall, "processor_s": processor, "wanted_s": wanted}
        rows.append((name, f"{wall:.0f}", f"{processor:.0f}", f"{processor / cores:.0f}", f"{wanted:.0f}"))
    print_table(("network", "wall, s", "processor time, s", f"the same over {cores} threads", "wanted, s"), rows)
    first = cases[args.networks[0]]
    print_result(
        "diagnose",
        "the time wanted",
        first["wanted_s"] / first["wall_s"],
        first["wall_s"],
        first["wanted_s"],
        "s",
        cases=cases,
    )


if __name__ == "__main__":
    main()
