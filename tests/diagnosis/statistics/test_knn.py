import math

import pytest
import torch
import torch.nn.functional as F

from modeling_decodepos.diagnosis import knn_accuracy, knn_neighbours, knn_predict
from modeling_decodepos.diagnosis.statistics import knn
from modeling_decodepos.diagnosis.statistics.knn import knn_vote


@pytest.fixture
def rows():
    """Noisy classes around random directions: gallery, its labels, queries, their labels."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(7, 16, generator=generator)
    labels = torch.randint(0, 7, (150,), generator=generator)
    features = directions[labels] + 1.2 * torch.randn(150, 16, generator=generator)
    return features[:110], labels[:110], features[110:], labels[110:]


def predict_slowly(gallery, labels, query, k, temperature):
    cosines = [float(F.cosine_similarity(row, query, dim=0)) for row in gallery]
    votes = {}
    for row in sorted(range(len(gallery)), key=lambda row: -cosines[row])[:k]:
        votes[int(labels[row])] = votes.get(int(labels[row]), 0.0) + math.exp(cosines[row] / temperature)
    return max(votes, key=votes.get)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 2e-3), (20, 10.0), (500, 0.07)])
def test_predictions_are_those_of_a_slow_vote(rows, k, temperature):
    gallery, labels, queries, _ = rows
    expected = [predict_slowly(gallery, labels, query, k, temperature) for query in queries]
    assert knn_predict(gallery, labels, queries, k=k, temperature=temperature).tolist() == expected


def test_weights_matter():
    """Two far neighbours of one class against a near one of another."""
    gallery = F.normalize(torch.tensor([[1.0, 0.05], [0.7, 0.7], [0.7, 0.72]]), dim=1)
    labels, query = torch.tensor([4, 9, 9]), torch.tensor([[1.0, 0.0]])
    assert knn_predict(gallery, labels, query, k=3, temperature=0.07).tolist() == [4]
    assert knn_predict(gallery, labels, query, k=3, temperature=100.0).tolist() == [9]


def test_a_tie_goes_to_the_nearer_neighbour():
    gallery = torch.tensor([[1.0, 0.2], [1.0, 0.1]])
    assert knn_predict(gallery, torch.tensor([0, 1]), torch.tensor([[1.0, 0.0]]), k=2, temperature=1e6).tolist() == [1]


def test_chunks_change_nothing(rows, monkeypatch):
    gallery, labels, queries, _ = rows
    whole = knn_predict(gallery, labels, queries, k=5)
    monkeypatch.setattr(knn, "_MOST_PAIRS", 60)  # two queries and their five neighbours
    assert torch.equal(knn_predict(gallery, labels, queries, k=5), whole)
    monkeypatch.setattr(knn, "_MOST_PAIRS", 1)  # less than one row
    assert torch.equal(knn_predict(gallery, labels, queries, k=5), whole)


def slow_neighbours(gallery, query):
    """Every gallery row by its cosine, largest first, one number at a time."""
    found = []
    for number, row in enumerate(gallery.double().tolist()):
        wanted = query.double().tolist()
        product = sum(a * b for a, b in zip(row, wanted, strict=True))
        length = math.sqrt(sum(a * a for a in row)) * math.sqrt(sum(b * b for b in wanted))
        found.append((product / length, number))
    return sorted(found, reverse=True)


@pytest.mark.parametrize(("query_block", "gallery_block"), [(512, 8192), (4, 3), (1, 110), (7, 10)])
def test_blocks_find_what_a_loop_finds(rows, query_block, gallery_block):
    gallery, _, queries, _ = rows
    cosines, places = knn_neighbours(gallery, queries, 9, query_block=query_block, gallery_block=gallery_block)
    for number, query in enumerate(queries):
        expected = slow_neighbours(gallery, query)[:9]
        assert places[number].tolist() == [place for _, place in expected]
        assert cosines[number].tolist() == pytest.approx([cosine for cosine, _ in expected], abs=1e-6)


@pytest.mark.parametrize("k", [1, 5, 20, 110, 200])
def test_votes_equal_a_loop(rows, k):
    gallery, labels, queries, _ = rows
    cosines, places = knn_neighbours(gallery, queries, k, gallery_block=8)
    assert places.shape[1] == min(k, 110)
    voted = knn_vote(cosines, labels[places], 0.1)
    for number, query in enumerate(queries):
        votes = {}
        for cosine, place in slow_neighbours(gallery, query)[:k]:
            votes[int(labels[place])] = votes.get(int(labels[place]), 0.0) + math.exp(cosine / 0.1)
        assert int(voted[number]) == max(votes, key=votes.get)
    assert torch.equal(voted, knn_predict(gallery, labels, queries, k=k, temperature=0.1))


def test_a_prefix_of_the_neighbours_is_a_smaller_search(rows):
    gallery, _, queries, _ = rows
    assert torch.equal(knn_neighbours(gallery, queries, 20)[1][:, :5], knn_neighbours(gallery, queries, 5)[1])


def test_equal_rows_in_many_blocks_are_all_found():
    """Ties at the threshold of a block must not lose neighbours."""
    gallery = torch.ones(50, 3)
    cosines, places = knn_neighbours(gallery, torch.ones(2, 3), 7, gallery_block=4)
    assert torch.allclose(cosines, torch.ones(2, 7))
    assert [len(set(row)) for row in places.tolist()] == [7, 7]


@pytest.mark.parametrize("order", ["best last", "best first"])
def test_neighbours_that_come_last_or_first_are_found(order):
    """Every row of a block enters, or none does."""
    angles = torch.linspace(0, 1.5, 400)
    gallery = torch.stack([angles.cos(), angles.sin()], 1)
    query = gallery[-1:] if order == "best last" else gallery[:1]
    expected = list(range(399, 391, -1)) if order == "best last" else list(range(8))
    assert knn_neighbours(gallery, query, 8, gallery_block=50)[1].tolist() == [expected]


def test_half_precision_galleries_and_no_queries(rows):
    gallery, _, queries, _ = rows
    expected = knn_neighbours(gallery.half().float(), queries, 3)[1]
    assert torch.equal(knn_neighbours(gallery.half(), queries, 3)[1], expected)
    for block in (5, 4096):
        none = knn_neighbours(gallery, queries[:0], 3, gallery_block=block)
        assert [part.shape for part in none] == [(0, 3), (0, 3)]


@pytest.mark.parametrize("scale", [2.0**-100, 1e-10, 1e-25])
def test_features_of_any_size_have_the_same_neighbours(rows, scale):
    gallery, _, queries, _ = rows
    cosines, places = knn_neighbours(gallery, queries, 6)
    small_cosines, small_places = knn_neighbours(scale * gallery, scale * queries, 6)
    assert torch.equal(small_places, places)
    torch.testing.assert_close(small_cosines, cosines, rtol=0, atol=1e-6 if scale != 2.0**-100 else 0)
    zero = knn_neighbours(gallery, torch.zeros(1, 16), 3)[0]
    assert torch.equal(zero, torch.zeros(1, 3))


def test_rotation_and_row_scale_change_nothing(rows):
    gallery, labels, queries, _ = rows
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q
    scale = torch.linspace(0.1, 30, len(gallery))[:, None]
    expected = knn_predict(gallery, labels, queries, k=10)
    assert torch.equal(knn_predict(scale * gallery @ turn, labels, 7 * queries @ turn, k=10), expected)


def test_neighbours_come_nearest_first(rows):
    cosines, found = knn_neighbours(rows[0], rows[0][:4], 6)
    assert found[:, 0].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(cosines[:, 0], torch.ones(4))
    assert (cosines.diff(dim=1) <= 0).all()
    assert knn_neighbours(rows[0], rows[2][:0], 6)[1].shape == (0, 6)


def test_accuracy_over_queries_and_over_their_classes():
    result = knn_accuracy(torch.tensor([3, 3, 3, 8, 0]), torch.tensor([3, 3, 3, 3, 8]))
    assert result.micro == pytest.approx(3 / 5)
    assert result.class_mean == pytest.approx((3 / 4 + 0) / 2)  # classes 3 and 8; class 0 is in no query


def test_a_collapsed_gallery_predicts_one_class(rows):
    _, labels, queries, _ = rows
    assert len(knn_predict(torch.ones(110, 16), labels, torch.ones_like(queries)).unique()) == 1


def test_wrong_input_is_named(rows):
    gallery, labels, queries, _ = rows
    with pytest.raises(ValueError, match=r"expected \(G, D\) and \(Q, D\)"):
        knn_neighbours(gallery, queries[:, :3], 5)
    with pytest.raises(ValueError, match="the gallery has 0 rows"):
        knn_neighbours(gallery[:0], queries, 5)
    with pytest.raises(ValueError, match="one per row"):
        knn_predict(gallery, labels[:-1], queries)
    with pytest.raises(ValueError, match="NaN"):
        knn_predict(gallery, labels, queries * float("nan"))
    with pytest.raises(ValueError, match="Q > 0"):
        knn_accuracy(labels[:0], labels[:0])
