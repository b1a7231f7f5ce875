import math

import pytest
import torch

from modeling_decodepos.diagnosis import knn_predict
from training.evaluation.nearest import nearest, vote


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    gallery, queries = (torch.randn(count, 6, generator=generator) for count in (57, 23))
    return gallery, torch.randint(0, 4, (57,), generator=generator), queries


def slow_neighbours(gallery: torch.Tensor, query: torch.Tensor) -> list[tuple[float, int]]:
    """Every gallery row by its cosine, largest first, one number at a time."""
    found = []
    for number, row in enumerate(gallery.double().tolist()):
        wanted = query.double().tolist()
        product = sum(a * b for a, b in zip(row, wanted, strict=True))
        length = math.sqrt(sum(a * a for a in row)) * math.sqrt(sum(b * b for b in wanted))
        found.append((product / length, number))
    return sorted(found, reverse=True)


@pytest.mark.parametrize(("query_block", "gallery_block"), [(512, 8192), (4, 3), (1, 57), (7, 10)])
def test_blocks_find_what_a_loop_finds(rows, query_block: int, gallery_block: int):
    gallery, _, queries = rows
    cosines, places = nearest(gallery, queries, 9, query_block=query_block, gallery_block=gallery_block)
    for number, query in enumerate(queries):
        expected = slow_neighbours(gallery, query)[:9]
        assert places[number].tolist() == [place for _, place in expected]
        assert cosines[number].tolist() == pytest.approx([cosine for cosine, _ in expected], abs=1e-6)


@pytest.mark.parametrize("k", [1, 5, 20, 57, 100])
def test_votes_equal_a_loop_and_the_diagnosis(rows, k: int):
    gallery, labels, queries = rows
    cosines, places = nearest(gallery, queries, k, gallery_block=8)
    assert places.shape[1] == min(k, 57)
    voted = vote(cosines, labels[places], 0.1)
    for number, query in enumerate(queries):
        votes: dict[int, float] = {}
        for cosine, place in slow_neighbours(gallery, query)[:k]:
            votes[int(labels[place])] = votes.get(int(labels[place]), 0.0) + math.exp(cosine / 0.1)
        assert int(voted[number]) == max(votes, key=lambda label: votes[label])
    assert torch.equal(voted, knn_predict(gallery, labels, queries, k=k, temperature=0.1))


def test_a_prefix_of_the_neighbours_is_a_smaller_search(rows):
    gallery, _, queries = rows
    assert torch.equal(nearest(gallery, queries, 20)[1][:, :5], nearest(gallery, queries, 5)[1])


def test_equal_rows_in_many_blocks_are_all_found():
    """Ties at the threshold of a block must not lose neighbours."""
    gallery = torch.ones(50, 3)
    cosines, places = nearest(gallery, torch.ones(2, 3), 7, gallery_block=4)
    assert torch.allclose(cosines, torch.ones(2, 7))
    assert [len(set(row)) for row in places.tolist()] == [7, 7]


@pytest.mark.parametrize("order", ["best last", "best first"])
def test_neighbours_that_come_last_or_first_are_found(order: str):
    """Every row of a block enters, or none does."""
    angles = torch.linspace(0, 1.5, 400)
    gallery = torch.stack([angles.cos(), angles.sin()], 1)
    query = gallery[-1:] if order == "best last" else gallery[:1]
    expected = list(range(399, 391, -1)) if order == "best last" else list(range(8))
    assert nearest(gallery, query, 8, gallery_block=50)[1].tolist() == [expected]


def test_half_precision_galleries_and_empty_queries(rows):
    gallery, _, queries = rows
    assert torch.equal(nearest(gallery.half(), queries, 3)[1], nearest(gallery.half().float(), queries, 3)[1])
    assert [part.shape for part in nearest(gallery, queries[:0], 3)] == [(0, 3), (0, 3)]


def test_what_cannot_be_searched_is_refused(rows):
    gallery, _, queries = rows
    with pytest.raises(ValueError, match="NaN or infinite"):
        nearest(gallery.index_fill(0, torch.tensor([3]), math.nan), queries, 3)
    with pytest.raises(ValueError, match=r"gallery is \(57, 6\) and queries \(23, 5\)"):
        nearest(gallery, queries[:, :5], 3)
    with pytest.raises(ValueError, match="the gallery has 0 rows"):
        nearest(gallery[:0], queries, 3)
