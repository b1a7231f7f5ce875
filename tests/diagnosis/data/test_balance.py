import numpy as np
import pytest

from modeling_decodepos.diagnosis.data.balance import (
    MOST_CLASSES,
    shared_classes,
    take_balanced,
)


def photos(count, seed=0):
    """Labels as of photos: class 0 is most of what there is, in every picture."""
    rng = np.random.default_rng(seed)
    return [np.concatenate([np.zeros(5, np.int64), rng.integers(1, 6, rng.integers(0, 4))]) for _ in range(count)]


def test_a_frequent_class_gives_no_more_than_the_others():
    labels = photos(200)
    chosen = take_balanced(labels, range(6), 60, 2)
    taken = np.concatenate([own[kept] for own, kept in zip(labels, chosen, strict=True)])
    assert np.bincount(taken).tolist() == [10] * 6
    assert max(map(len, chosen)) == 2
    assert max(map(len, take_balanced(labels, range(6), 60, 1))) == 1
    assert sum(map(bool, map(len, chosen))) < 60  # pictures that give two are few passes of a network


def test_what_is_not_asked_for_is_not_taken():
    labels = [np.array([0, 1, 2, 2]), np.array([], np.int64), np.array([2])]
    assert [kept.tolist() for kept in take_balanced(labels, [1, 2], 20, 2)] == [[1, 2], [], [0]]
    assert [kept.tolist() for kept in take_balanced(labels, [], 20, 2)] == [[], [], []]


def test_classes_are_those_that_both_sides_have_most_of():
    gallery = [np.array([0] * 9 + [1] * 5 + [2] * 3 + [4])]
    queries = [np.array([0] * 2), np.array([1] * 4 + [2] * 3 + [3] * 9)]
    assert shared_classes(gallery, queries) == [1, 2, 0]
    assert shared_classes([], queries) == []
    many = [np.arange(100)]
    assert len(shared_classes(many, many)) == MOST_CLASSES


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_depends_on_the_order_of_pictures_only(seed):
    labels = photos(50, seed)
    one, other = (take_balanced(labels, range(6), 24, 2) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
