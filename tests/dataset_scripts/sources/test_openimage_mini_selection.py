import dataclasses
import hashlib
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from dataset_scripts.sources.openimage_mini.selection import Rule, select
from dataset_scripts.sources.openimage_mini.tables import BOX, Boxes, id_text
from modeling_decodepos.commands.settings import from_values

SMALL = Rule(
    train_images=5, small_images=2, validation_images=2, least_train_boxes=2, least_validation_boxes=1, cap_step=1
)


def boxes_of(rows) -> Boxes:
    """Boxes from (id, class, x1, y1, x2, y2)."""
    return np.array([(number, category, corners) for number, category, *corners in rows], BOX)


def image(number: int, *classes: int, side: float = 0.5) -> list[tuple]:
    return [(number, category, 0.1, 0.1, 0.1 + side, 0.1 + side) for category in classes]


# Four classes: 0 ant, 1 bee, 2 cat, 3 dog. Images 1 to 9 train, 10 to 13 validation.
ANT, BEE, CAT, DOG = range(4)
NAMES = ["ant", "bee", "cat", "dog"]
TRAIN = [
    *image(1, ANT, BEE),
    *image(2, ANT, BEE),
    *image(3, ANT, BEE),
    *image(4, ANT, CAT),
    *image(5, BEE, CAT),
    *image(6, ANT, ANT),  # one class only
    *image(7, ANT, BEE, side=0.05),  # both boxes tiny
    *image(8, ANT, DOG),  # dogs have one box in all: no class, so one box is left
    *image(9, ANT, BEE, BEE),
]
VALIDATION = [*image(10, ANT, BEE), *image(11, BEE, CAT), *image(12, ANT, CAT), *image(13, CAT)]


def chosen(train, validation, rule, allowed=None, names=NAMES):
    allowed = np.ones(len(names), bool) if allowed is None else np.array(allowed)
    found = select(boxes_of(train), boxes_of(validation), allowed, names, rule)
    return (
        [names[place] for place in found.classes],
        [int(number) for number in found.train],
        found.small,
        [int(number) for number in found.validation],
    )


def test_the_ids_that_were_worked_out_by_hand():
    """
    Classes: dog has one training box of the two that are needed.
    Candidates: not 6 (one class), 7 (boxes too small), 8 (one box without the dog).
    First digits of the SHA-1: 9 0ddd, 3 179e, 5 2509, 2 69e0, 4 8b92, 1 ab99; 11 224c, 10 3801, 12 b922.
    By class: cat 5 4, then ant 9 3 2 4 1 and bee 9 3 5 2 1, which are as rare as each other and go by name.
    Cap 1: 5 for the cat, 9 for the ant, the bee has two by now.
    Cap 2: 4 for the cat; ant and bee have two.
    Cap 3: no cat is left, 3 for the ant. Cap 4: 2 for the ant, which makes five.
    Small: 5 and 9. Rows: 9 5, then 3 2 4.
    """
    assert chosen(TRAIN, VALIDATION, SMALL) == (["ant", "bee", "cat"], [9, 5, 3, 2, 4], 2, [11, 10])


def test_the_small_tier_is_a_prefix_and_more_images_only_add():
    rule = dataclasses.replace(SMALL, small_images=2)
    for count in (2, 3, 4, 5, 6):
        _, train, small, _ = chosen(TRAIN, VALIDATION, dataclasses.replace(rule, train_images=count))
        assert len(train) == count
        assert train[:small] == [9, 5]


def test_fewer_candidates_than_wanted_are_all_taken():
    _, train, small, validation = chosen(TRAIN, VALIDATION, Rule(least_train_boxes=2, least_validation_boxes=1))
    assert sorted(train) == [1, 2, 3, 4, 5, 9]
    assert (small, sorted(validation)) == (6, [10, 11, 12])


def test_classes_that_are_not_allowed_or_too_many_are_left_out():
    rule = dataclasses.replace(SMALL, least_train_boxes=1)
    classes, train, _, _ = chosen(TRAIN, VALIDATION, rule, allowed=[True, False, True, True])
    assert classes == ["ant", "cat"]  # no dog in validation
    assert train == [4]
    classes, _, _, _ = chosen(TRAIN, VALIDATION, dataclasses.replace(SMALL, most_classes=2))
    assert classes == ["ant", "bee"]


def test_an_image_of_both_splits_is_left_out_of_training():
    """It would be learned and then asked for, even if it is no candidate there."""
    _, train, _, _ = chosen(TRAIN, [*VALIDATION, *image(9, CAT)], dataclasses.replace(SMALL, train_images=9))
    assert sorted(train) == [1, 2, 3, 4, 5]


def test_nothing_to_choose_from_is_an_error_with_a_cure():
    with pytest.raises(ValueError, match="No class has 500 training"):
        chosen(TRAIN, VALIDATION, Rule())
    with pytest.raises(ValueError, match="No training image fulfils the rule. Lower least_boxes"):
        chosen(TRAIN, VALIDATION, dataclasses.replace(SMALL, least_boxes=9))


# ------------------------------------------------------------------------------------- a second, slow implementation


def slow_reference(train, validation, allowed, names, rule):
    """The rule once more, from its words, in plain Python."""

    def key(number):
        return hashlib.sha1((rule.salt + id_text(number)).encode()).hexdigest()

    def by_image(rows, classes):
        images = defaultdict(list)
        for number, category, x1, y1, x2, y2 in rows:
            if category in classes:
                images[number].append((category, ((x2 - x1) * (y2 - y1)) ** 0.5))
        return {
            number: {category for category, _ in boxes}
            for number, boxes in images.items()
            if len(boxes) >= rule.least_boxes
            and len({category for category, _ in boxes}) >= rule.least_classes
            and any(rule.least_side <= side <= rule.greatest_side for _, side in boxes)
        }

    train_boxes, validation_boxes = (Counter(row[1] for row in rows) for rows in (train, validation))
    enough = [
        c for c in range(len(names))
        if allowed[c] and train_boxes[c] >= rule.least_train_boxes
        and validation_boxes[c] >= rule.least_validation_boxes and train_boxes[c]
    ]  # fmt: skip
    classes = set(sorted(enough, key=lambda c: (-train_boxes[c], names[c]))[: rule.most_classes])
    in_validation = {row[0] for row in validation}
    candidates = {n: shown for n, shown in by_image(train, classes).items() if n not in in_validation}
    rarity = Counter(c for shown in candidates.values() for c in shown)
    taken, cap = [], 0
    while len(taken) < min(rule.train_images, len(candidates)):
        cap += rule.cap_step
        for c in sorted(rarity, key=lambda c: (rarity[c], names[c])):
            for number in sorted(candidates, key=key):
                full = sum(c in candidates[n] for n in taken) >= cap
                if full or len(taken) == rule.train_images:
                    break
                if c in candidates[number] and number not in taken:
                    taken.append(number)
    small = min(rule.small_images, len(taken))
    return (
        sorted(names[c] for c in classes),
        sorted(taken[:small], key=key) + sorted(taken[small:], key=key),
        small,
        sorted(by_image(validation, classes), key=key)[: rule.validation_images],
    )


def random_rows(rng: random.Random, images: range, classes: int) -> list[tuple]:
    rows = []
    for number in images:
        for _ in range(rng.randint(0, 5)):
            category = min(int(rng.expovariate(0.4)), classes - 1)
            x1, y1 = rng.choice([0, 0.125, 0.25]), rng.choice([0, 0.25])
            rows.append(
                (number, category, x1, y1, x1 + rng.choice([0.0625, 0.25, 0.75]), y1 + rng.choice([0.125, 0.75]))
            )
    return list(dict.fromkeys(rows))  # repeated rows are gone by then


@pytest.mark.parametrize("seed", range(12))
def test_it_agrees_with_a_slow_implementation_in_any_order_of_rows(seed):
    rng = random.Random(seed)
    names = [f"class {c}" for c in rng.sample(range(8), 8)]
    train, validation = random_rows(rng, range(60), 8), random_rows(rng, range(55, 75), 8)
    allowed = [rng.random() < 0.85 for _ in names]
    rule = Rule(
        train_images=rng.choice([7, 20, 100]),
        small_images=rng.choice([0, 5, 7]),
        validation_images=6,
        least_train_boxes=rng.choice([1, 5]),
        least_validation_boxes=1,
        most_classes=rng.choice([4, 254]),
        least_classes=rng.choice([1, 2]),
        least_boxes=rng.choice([1, 2, 3]),
        cap_step=rng.choice([1, 3]),
        salt=rng.choice(["openimage-mini", "another"]),
    )
    expected = slow_reference(train, validation, allowed, names, rule)
    found = chosen(train, validation, rule, allowed, names)
    assert (sorted(found[0]), *found[1:]) == expected
    shuffled = chosen(rng.sample(train, len(train)), rng.sample(validation, len(validation)), rule, allowed, names)
    assert shuffled == found


def test_prefixes_are_balanced():
    """Of 30 images of a rare class and 300 of a common one, a small tier has about as many of each."""
    rows = [row for n in range(30) for row in image(n, CAT, DOG)] + [
        row for n in range(30, 330) for row in image(n, ANT, BEE)
    ]
    rule = Rule(train_images=200, small_images=40, least_validation_boxes=0, least_train_boxes=1, cap_step=2)
    _, train, small, _ = chosen(rows, [], rule)
    assert sum(number < 30 for number in train[:small]) == 20
    assert sum(number < 30 for number in train) == 30


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"least_box": 1}, "unknown key 'least_box'. Did you mean 'least_boxes'"),
        ({"train_images": "many"}, "train_images is 'many' .str.; expected int"),
        ({"train_images": True}, "train_images is True .bool.; expected int"),
        ({"cap_step": 0}, "cap_step is 0; expected at least 1"),
        ({"small_images": 9, "train_images": 8}, "expected at most train_images, 8"),
        ({"least_side": 0.9}, "least_side and greatest_side"),
        ({"most_classes": 300}, "expected at least 1 and at most 254"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        from_values(Rule, values, "the rule")


def test_whole_numbers_serve_as_shares():
    assert from_values(Rule, {"greatest_side": 1}, "the rule").greatest_side == 1
