"""Object k-NN and retrieval of the same object, from features that are known."""

import numpy as np
import pytest
import torch

from modeling_decodepos.diagnosis.measures.objects import class_weights, find_itself, object_accuracy, share_right


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_mean_over_classes_counts_a_rare_class_as_a_frequent_one():
    labels = torch.tensor([0] * 18 + [1] * 2)
    right = labels == 0
    owners = torch.arange(20) // 2
    assert share_right(right, owners).value == pytest.approx(0.9)
    assert share_right(right, owners, class_weights(labels)).value == pytest.approx(0.5)


def test_objects_of_one_image_are_drawn_together():
    right = torch.rand(300, generator=torch.Generator().manual_seed(0)) < 0.5
    alone = share_right(right.repeat_interleave(4), torch.arange(1200))
    together = share_right(right.repeat_interleave(4), torch.arange(1200) // 4)
    assert together.count == 300
    assert together.high - together.low == pytest.approx(2 * (alone.high - alone.low), rel=0.15)


@pytest.mark.parametrize("counts", [[6] * 20, [6] * 12 + [3] * 4 + [1] * 4])
def test_the_interval_of_a_mean_over_classes_holds_it(counts):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    # Every class has a share of its own; two neighbours in the list are of one image, and often right together.
    shares = rng.beta(2, 2, len(counts))
    held = []
    for draw in range(400):
        order = rng.permutation(len(labels))
        owners = np.empty(len(labels), np.int64)
        owners[order] = np.arange(len(labels)) // 2
        luck = rng.random(len(labels))[owners] * 0.5 + rng.random(len(labels)) * 0.5
        chance = np.where(luck < 0.5, 2 * luck**2, 1 - 2 * (1 - luck) ** 2)  # uniform again
        right, classes = torch.from_numpy(chance < shares[labels]), torch.from_numpy(labels)
        found = share_right(right, torch.from_numpy(owners), class_weights(classes), seed=draw)
        held.append(found.low <= shares.mean() <= found.high)
    assert np.mean(held) >= 0.93


def test_classes_are_told_by_neighbours_in_the_same_version():
    classes = normal(5, 16)
    labels = torch.arange(50) % 5
    gallery, queries = (classes[labels] + 0.1 * normal(50, 16, seed=k) for k in (1, 2))
    micro, mean = object_accuracy(gallery, labels, queries, labels, torch.arange(50), k=5)
    assert micro.value == mean.value == 1.0
    micro, mean = object_accuracy(gallery, labels, queries, (labels + 1) % 5, torch.arange(50), k=5)
    assert micro.value == mean.value == 0.0
    assert object_accuracy(torch.ones(9, 4), labels[:9], torch.ones(9, 4), labels[:9], labels[:9])[1].value is None


def test_an_object_that_equals_others_finds_itself_by_chance():
    objects = normal(6, 8).repeat_interleave(2, 0)  # two of each picture, which look alike
    owners = torch.arange(12) // 2
    centred = objects - objects.mean(0)
    assert find_itself(centred, centred, owners).value == pytest.approx(0.5)
    assert find_itself(centred, centred.roll(2, 0), owners).value == 0.0
    assert find_itself(torch.ones(4, 3), torch.ones(4, 3), torch.arange(4)).value is None
    assert find_itself(objects[:1], objects[:1], owners[:1]).value is None


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_scale_of_features_does_not_count(scale):
    objects = normal(40, 8)
    changed = objects + 0.3 * normal(40, 8, seed=1)
    expected = find_itself(objects, changed, torch.arange(40)).value
    assert 0.5 < expected < 1.0
    assert find_itself(scale * objects, scale * changed, torch.arange(40)).value == expected
