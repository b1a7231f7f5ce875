"""Which objects of many pictures to look at, so that every class counts alike.

Labels are those of each picture's usable objects, (R_i,) of picture i; data without classes has one label for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]

MOST_CLASSES = 20
"""Of the classes that both sides have, those with most objects: of more classes, too few objects of each would do."""


def shared_classes(gallery: Sequence[Labels], queries: Sequence[Labels]) -> list[int]:
    """The classes to look at: the most frequent on the side where they are rarer."""
    sides = [np.concatenate([np.zeros(0, np.int64), *side]) for side in (gallery, queries)]
    size = 1 + max((int(side.max()) for side in sides if len(side)), default=0)
    counts = np.minimum(*(np.bincount(side, minlength=size) for side in sides))
    order = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    return [int(label) for label in order if counts[label]]


def take_balanced(labels: Sequence[Labels], classes: Sequence[int], total: int, per_picture: int) -> list[Labels]:
    """Of each picture, numbers of the objects to take: about `total`, of every class the same number at most.

    Pictures are gone through in their order, and give `per_picture` objects at most, of the classes that lack most:
    those of one picture hang together, and ten of them say little more than two.
    """
    left = dict.fromkeys(classes, math.ceil(total / max(1, len(classes))))
    chosen = []
    for own in labels:
        taken: list[int] = []
        for number in sorted(range(len(own)), key=lambda k: -left.get(int(own[k]), 0)):
            label = int(own[number])
            if left.get(label, 0) > 0 and len(taken) < per_picture:
                left[label] -= 1
                taken.append(number)
        chosen.append(np.array(sorted(taken), np.int64))
    return chosen
