import pytest
import torch

from training.evaluation.miou import confusion, segmentation_scores


def slow_score(predicted: list[int], true: list[int], classes: int) -> tuple[float, float, float]:
    ious, objects = [], []
    for label in range(classes):
        both = sum(p == label == t for p, t in zip(predicted, true, strict=True))
        either = sum((p == label or t == label) and t != 255 for p, t in zip(predicted, true, strict=True))
        if label in true:
            ious.append(both / either)
            objects += [both / either] if label else []
    counted = [(p, t) for p, t in zip(predicted, true, strict=True) if t != 255]
    means = (sum(values) / len(values) for values in (ious, objects))
    return *means, sum(p == t for p, t in counted) / len(counted)


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_loop_over_pixels(seed: int):
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(0, 6, (12, 17), generator=generator)
    true = torch.randint(0, 5, (12, 17), generator=generator)  # class 5 is predicted only
    true[torch.rand(12, 17, generator=generator) < 0.2] = 255
    true[true == 2] = 1  # class 2 too
    score = segmentation_scores(confusion(predicted, true, 6))
    expected = slow_score(predicted.flatten().tolist(), true.flatten().tolist(), 6)
    assert tuple(score.values()) == pytest.approx(expected)


def test_tables_of_images_add_up_and_ignored_pixels_never_count():
    true = torch.tensor([[0, 1, 255, 2], [1, 1, 255, 0]])
    predicted = torch.tensor([[0, 1, 0, 1], [1, 0, 2, 0]])
    whole = confusion(predicted, true, 3)
    assert torch.equal(whole, confusion(predicted[:1], true[:1], 3) + confusion(predicted[1:], true[1:], 3))
    assert whole.sum() == 6
    predicted[true == 255] = 1
    assert torch.equal(whole, confusion(predicted, true, 3))


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a map holds class 7, but there are 3"):
        confusion(torch.zeros(2, 2), torch.full((2, 2), 7), 3)
    with pytest.raises(ValueError, match="expected equal shapes"):
        confusion(torch.zeros(2, 2), torch.zeros(2, 3), 3)
    with pytest.raises(ValueError, match="not a single pixel has a class"):
        segmentation_scores(confusion(torch.zeros(2, 2), torch.full((2, 2), 255), 3))
