"""Coarser classes of known lists: COCO's supercategories, and the shapes and textures of `scenes`.

With few images or a weak network, 80 or 40 classes leave little to tell networks apart by.
"""

from __future__ import annotations

from collections.abc import Sequence

from modeling_decodepos.data.scenes import CLASS_NAMES, SHAPES, TEXTURES

# The list of arXiv 1405.0312, as in the `supercategory` of the released annotations.
_COCO = {
    "person": "person",
    "vehicle": "bicycle, car, motorcycle, airplane, bus, train, truck, boat",
    "outdoor": "traffic light, fire hydrant, stop sign, parking meter, bench",
    "animal": "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    "accessory": "backpack, umbrella, handbag, tie, suitcase",
    "sports": "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, "
    "tennis racket",
    "kitchen": "bottle, wine glass, cup, fork, knife, spoon, bowl",
    "food": "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
    "furniture": "chair, couch, potted plant, bed, dining table, toilet",
    "electronic": "tv, laptop, mouse, remote, keyboard, cell phone",
    "appliance": "microwave, oven, toaster, sink, refrigerator",
    "indoor": "book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
}
_SUPERCATEGORY = {name: place for place, names in enumerate(_COCO.values()) for name in names.split(", ")}


def class_groups(names: Sequence[str] | None) -> dict[str, list[int]]:
    """The group of every class, by the name of the grouping; empty for lists that are not known."""
    if names is not None and tuple(names) == CLASS_NAMES:
        return {
            "shape": [place // len(TEXTURES) for place in range(len(SHAPES) * len(TEXTURES))],
            "texture": [place % len(TEXTURES) for place in range(len(SHAPES) * len(TEXTURES))],
        }
    if names is not None and set(names) == set(_SUPERCATEGORY):
        return {"supercategory": [_SUPERCATEGORY[name] for name in names]}
    return {}
