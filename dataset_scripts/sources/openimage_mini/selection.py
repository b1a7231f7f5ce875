"""Which images OpenImage-MINI consists of: a rule on boxes, without randomness, that no order of rows changes.

The paper's list was never released; this is our reconstruction of a set as large as COCO, of several objects per
image. From the usable boxes (`tables`):

1.  Classes: those allowed by the caller (leaves of the hierarchy, classes with masks) that have enough boxes in both
    splits; if more than `most_classes` are left, those with most training boxes.
2.  Candidates: images with enough boxes and enough classes among them, and a box neither tiny nor filling the image.
3.  Training: the rarest class first, each is filled up to a cap; then the cap is raised by `cap_step`, until there
    are enough images. An image counts for every class in it. Within a class, images come in the order of the SHA-1 of
    `salt` and id. The first images taken are the small tier, so that it is balanced as well.
4.  Validation: candidates of the official validation split in the order of the SHA-1, not balanced.
5.  Rows: the small tier first, in the order of the SHA-1, then the rest in that order.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modeling_decodepos.commands.settings import check, key

from .tables import Boxes, Ids


@dataclass(frozen=True)
class Rule:
    """The thresholds; every one is a key of the recipe.

    Our choices: as large as COCO's train2017 and val2017, a class map that fits into 8 bits.
    """

    train_images: int = key(118_287, "images for training", within=(1, 10_000_000))
    small_images: int = key(20_000, "of them, images of the small tier", within=(0, 10_000_000))
    validation_images: int = key(5_000, "images for validation", within=(0, 10_000_000))
    least_train_boxes: int = key(500, "a class needs so many usable training boxes", within=(0, 10_000_000))
    least_validation_boxes: int = key(20, "a class needs so many usable validation boxes", within=(0, 10_000_000))
    most_classes: int = key(254, "keep at most so many classes; 255 means ignore in a map", within=(1, 254))
    least_boxes: int = key(2, "an image needs so many boxes", within=(1, 10_000_000))
    least_classes: int = key(2, "an image needs boxes of so many classes", within=(1, 10_000_000))
    least_side: float = key(0.1, "an image needs a box with a sqrt(area) of at least this …", within=(0, 1))
    greatest_side: float = key(0.8, "… and at most this share of the image", within=(0, 1))
    cap_step: int = key(20, "images per class in one round of the greedy choice", within=(1, 10_000_000))
    hand_drawn: bool = key(False, "only boxes drawn by hand (Source is xclick)")
    salt: str = key("openimage-mini", "of the SHA-1 that orders images")

    def __post_init__(self) -> None:
        check(self)
        if self.small_images > self.train_images:
            raise ValueError(
                f"small_images is {self.small_images}, expected at most train_images, {self.train_images}."
            )
        if self.least_side > self.greatest_side:
            raise ValueError(
                f"least_side and greatest_side are {self.least_side} and {self.greatest_side}, expected least <= "
                "greatest."
            )


class Selection(NamedTuple):
    """What was chosen: places in the caller's class list, and ids in the order of the rows."""

    classes: NDArray[np.intp]
    train: Ids
    small: int  # so many of `train`, from the first on, are the small tier
    validation: Ids
    counts: dict[str, int]  # of classes and candidates, for the record


def select(train: Boxes, validation: Boxes, allowed: NDArray[np.bool_], names: Sequence[str], rule: Rule) -> Selection:
    """What the rule chooses among the usable boxes; the unique names of all classes decide ties between them."""
    classes = _kept_classes(train, validation, allowed, names, rule)
    if not len(classes):
        raise ValueError(
            f"No class has {rule.least_train_boxes} training and {rule.least_validation_boxes} validation boxes. "
            "Lower least_train_boxes or least_validation_boxes, or look whether the tables belong together."
        )
    kept = np.isin(np.arange(len(names)), classes)
    # An image of both splits would be learned and then asked for.
    candidates, both = _candidates(train, kept, rule, without=validation["image"])
    val_candidates, _ = _candidates(validation, kept, rule)
    counts = {
        "classes": len(classes),
        "train candidates": len(candidates.images),
        "train candidates also in validation, left out": both,
        "validation candidates": len(val_candidates.images),
    }
    if not len(candidates.images):
        raise ValueError(
            "No training image fulfils the rule. Lower least_boxes or least_classes, or widen least_side and "
            "greatest_side."
        )
    taken = _greedy(candidates, names, rule)
    small = min(rule.small_images, len(taken))
    rows = np.concatenate([np.sort(taken[:small]), np.sort(taken[small:])])
    return Selection(classes, candidates.images[rows], small, val_candidates.images[: rule.validation_images], counts)


def _kept_classes(
    train: Boxes, validation: Boxes, allowed: NDArray[np.bool_], names: Sequence[str], rule: Rule
) -> NDArray[np.intp]:
    """Places of the classes that are kept, in order."""
    train_boxes = np.bincount(train["category"], minlength=len(names))
    validation_boxes = np.bincount(validation["category"], minlength=len(names))
    enough = (train_boxes >= rule.least_train_boxes) & (validation_boxes >= rule.least_validation_boxes)
    found = np.flatnonzero(allowed & enough & (train_boxes > 0))
    most = sorted(found.tolist(), key=lambda place: (-train_boxes[place], names[place]))[: rule.most_classes]
    return np.array(sorted(most), np.intp)


class _Candidates(NamedTuple):
    """Images that fulfil the multi-object rule, and what they show, a row per image and class.

    Attributes:
        images: (N,) ids, in the order of the SHA-1.
        place: (P,) place in `images`, ascending.
        category: (P,) the kept classes that it shows.
    """

    images: Ids
    place: NDArray[np.intp]
    category: NDArray[np.intp]


def _candidates(
    boxes: Boxes, kept: NDArray[np.bool_], rule: Rule, without: Ids | Sequence[int] = ()
) -> tuple[_Candidates, int]:
    """The images that fulfil the rule, and how many more would if they were not among those to do without."""
    mine = kept[boxes["category"]]
    ids, image = np.unique(boxes["image"][mine], return_inverse=True)
    class_count = len(kept)
    pairs = np.sort(image * class_count + boxes["category"][mine])  # np.unique would hash them, many times slower
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # one per image and class
    place, category = np.divmod(pairs, class_count)
    good = (
        (np.bincount(image, minlength=len(ids)) >= rule.least_boxes)
        & (np.bincount(place, minlength=len(ids)) >= rule.least_classes)
        & (np.bincount(image[_have_sides(boxes["corners"][mine], rule)], minlength=len(ids)) > 0)
    )
    fresh = good & ~np.isin(ids, np.unique(without))
    of_rank = np.flatnonzero(fresh)
    of_rank = of_rank[_sha1_order(ids[of_rank], rule.salt)]
    rank = np.full(len(ids), -1)
    rank[of_rank] = np.arange(len(of_rank))
    place = rank[place]
    rows = np.argsort(place, kind="stable")[np.count_nonzero(place < 0) :]
    return _Candidates(ids[of_rank], place[rows], category[rows]), int((good & ~fresh).sum())


def _have_sides(corners: NDArray[np.float32], rule: Rule) -> NDArray[np.bool_]:
    """(N,) whether the square root of a box's area is in the rule's range."""
    side = np.subtract(corners[:, 2], corners[:, 0], dtype=np.float64)
    side *= np.subtract(corners[:, 3], corners[:, 1], dtype=np.float64)
    np.sqrt(side, out=side)
    return (side >= rule.least_side) & (side <= rule.greatest_side)


def _sha1_order(ids: Ids, salt: str) -> NDArray[np.intp]:
    """Order of the images by the SHA-1 of salt and id, in hexadecimal as in a text file."""
    text, before = ids.astype(">u8").tobytes().hex().encode(), salt.encode()
    digests = [hashlib.sha1(before + text[start : start + 16]).digest() for start in range(0, len(text), 16)]
    parts = np.frombuffer(b"".join(digests), np.dtype([("first", ">u8"), ("second", ">u8"), ("third", ">u4")]))
    return np.lexsort([parts[name].astype(np.uint64) for name in ("third", "second", "first")])


def _greedy(candidates: _Candidates, names: Sequence[str], rule: Rule) -> NDArray[np.intp]:
    """Places of the chosen candidates in the order in which they are taken."""
    by_class = np.argsort(candidates.category, kind="stable")
    count = np.bincount(candidates.category, minlength=len(names))
    images_of = np.split(candidates.place[by_class], np.cumsum(count)[:-1])
    rarest_first = sorted(np.flatnonzero(count).tolist(), key=lambda category: (count[category], names[category]))
    waiting = {category: iter(images_of[category]) for category in rarest_first}
    start = np.searchsorted(candidates.place, np.arange(len(candidates.images) + 1))
    shows = np.zeros(len(names), np.int64)  # chosen images by class
    is_taken = np.zeros(len(candidates.images), bool)
    taken: list[int] = []
    wanted = min(rule.train_images, len(candidates.images))
    for cap in itertools.count(rule.cap_step, rule.cap_step):
        for category in rarest_first:
            while shows[category] < cap:
                chosen = next((image for image in waiting[category] if not is_taken[image]), None)
                if chosen is None:
                    break
                is_taken[chosen] = True
                taken.append(chosen)
                shows[candidates.category[start[chosen] : start[chosen + 1]]] += 1
                if len(taken) == wanted:
                    return np.array(taken, np.intp)
    raise AssertionError("the rounds end when all candidates are taken")
