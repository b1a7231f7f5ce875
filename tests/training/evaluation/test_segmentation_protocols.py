"""Dense protocols: maps whose content is known, and networks that have to learn it."""

import pytest
import torch
import torch.nn.functional as F

from tests.training.evaluation.conftest import SIDE, FakeModel, write_squares
from training.evaluation import linear_segmentation, patch_retrieval
from training.evaluation.annotated_images import AnnotatedImages, MissingAnnotations
from training.evaluation.learning import batch_items, learning_rate_share
from training.evaluation.linear_segmentation import LinearSegmentationSettings
from training.evaluation.patch_retrieval import PatchRetrievalSettings, class_shares, look_up
from training.evaluation.segmentation_data import read_all, stack_labels

LINEAR = LinearSegmentationSettings(steps=60, learning_rate=0.1)


def colours(pixels):
    """The mean colour of 4 x 4 pixels."""
    return F.avg_pool2d(pixels, 4) - 128


def blank(pixels):
    return torch.ones(len(pixels), 3, SIDE // 4, SIDE // 4)


def test_maps_of_colours_are_read_and_blank_ones_are_not(evaluation):
    seen, unseen = (linear_segmentation.run(evaluation(FakeModel(cell=cell)), LINEAR) for cell in (colours, blank))
    assert seen["miou"].value > 0.75
    assert seen["pixel_accuracy"].value > 0.95
    # Everything is "no class": right on the rest of the image, and the classes have none.
    assert unseen["miou_objects"].value == 0
    assert unseen["miou"].value == pytest.approx(unseen["pixel_accuracy"].value / 4)


def test_patches_are_found_again(evaluation):
    settings = PatchRetrievalSettings(neighbours=5)
    seen, unseen = (patch_retrieval.run(evaluation(FakeModel(cell=cell)), settings) for cell in (colours, blank))
    assert seen["miou"].value > 0.75
    assert unseen["miou_objects"].value == 0
    few = patch_retrieval.run(evaluation(FakeModel(cell=colours)), PatchRetrievalSettings(5, 0.02, 24 * 20))
    assert 0.5 < few["miou"].value != seen["miou"].value


@pytest.mark.parametrize("protocol", ["linear_segmentation", "patch_retrieval"])
def test_neither_batch_size_nor_the_order_of_rows_changes_a_number(protocol, tmp_path, evaluation):
    backwards = write_squares(tmp_path / "backwards", lambda rows: rows[::-1])

    def run(**changes):
        built = evaluation(FakeModel(cell=colours), **changes)
        if protocol == "patch_retrieval":
            return patch_retrieval.run(built, PatchRetrievalSettings(5, 0.02, 24 * 20))
        return linear_segmentation.run(built, LinearSegmentationSettings(steps=20, learning_rate=0.05))

    first = run()
    for other in (run(batch_size=1), run(batch_size=64, data=backwards)):
        for name, measured in first.items():
            assert other[name].value == pytest.approx(measured.value, abs=1e-6), name


def test_maps_that_are_kept_give_what_maps_that_are_computed_again_give(evaluation, monkeypatch):
    settings = LinearSegmentationSettings(steps=20, learning_rate=0.05)
    kept = linear_segmentation.run(evaluation(FakeModel(cell=colours)), settings)
    monkeypatch.setattr(linear_segmentation, "MOST_CACHED", 20_000)
    assert linear_segmentation.run(evaluation(FakeModel(cell=colours)), settings) == kept


def test_shares_of_cells_equal_a_count_of_pixels(squares):
    picture = AnnotatedImages(str(squares), "train").picture(0, SIDE)
    shares, labelled = class_shares(picture, 4, 8, 8)
    for cell in range(64):
        y, x = cell // 8 * 8, cell % 8 * 8
        block = picture.label_map[y : y + 8, x : x + 8].flatten().tolist()
        known = [label for label in block if label != 255]
        assert bool(labelled[cell]) == bool(known)
        expected = [known.count(label) / len(known) if known else 0 for label in range(4)]
        assert shares[cell].tolist() == pytest.approx(expected)


def test_cells_take_the_label_in_their_middle(squares):
    images = AnnotatedImages(str(squares), "train")
    batch = [images.picture(place, SIDE) for place in range(3)]
    labels = stack_labels(batch, 16, 16)
    for picture, own in zip(batch, labels, strict=True):
        assert torch.equal(own, picture.label_map.long()[2::4, 2::4])


def test_looking_up_is_attention():
    generator = torch.Generator().manual_seed(0)
    cosines, shares = torch.rand(5, 7, generator=generator), torch.rand(5, 7, 3, generator=generator)
    found = look_up(cosines, shares, 0.1)
    for query in range(5):
        weights = [2.718281828 ** (float(c) / 0.1) for c in cosines[query]]
        for label in range(3):
            mean = sum(w * float(s) for w, s in zip(weights, shares[query, :, label], strict=True)) / sum(weights)
            assert float(found[query, label]) == pytest.approx(mean, rel=1e-5)


def test_data_without_maps_are_refused(tmp_path, evaluation):
    def change(rows):
        return [row | {"segmentation": None} for row in rows]

    data = write_squares(tmp_path / "none", change)
    with pytest.raises(MissingAnnotations, match="has no image with a `segmentation` map, of 24 images") as caught:
        linear_segmentation.run(evaluation(FakeModel(cell=colours), data), LINEAR)
    assert caught.value.what == "masks"


def test_only_images_with_maps_count(tmp_path, evaluation):
    def change(rows):
        return [row | {"segmentation": None} if number % 2 else row for number, row in enumerate(rows)]

    built = evaluation(FakeModel(cell=colours), write_squares(tmp_path / "half", change))
    measures = patch_retrieval.run(built, PatchRetrievalSettings(5))
    assert measures["miou"].count == 6


def test_pictures_that_cannot_be_read_are_replaced_whatever_the_batch(tmp_path, evaluation):
    def change(rows):
        for number in (3, 4):
            rows[number]["image"] = {"bytes": b"no picture", "path": None}
        return rows

    data = write_squares(tmp_path / "broken", change)
    built, threads = (evaluation(FakeModel(), data, num_workers=n) for n in (0, 3))
    ids = [picture.image_id for picture in read_all(built, built.images("train"), [2, 3, 4, 23])]
    assert ids == ["train-002", "train-005", "train-005", "train-023"]
    assert [p.image_id for p in read_all(threads, threads.images("train"), [3])] == ids[1:2]
    assert "is replaced by the next" in built.notes[0] and "train-003" in built.notes[0]
    nothing = write_squares(
        tmp_path / "none", lambda rows: [r | {"image": {"bytes": b"no", "path": None}} for r in rows]
    )
    built = evaluation(FakeModel(), nothing)
    with pytest.raises(ValueError, match="not a single image can be read"):
        read_all(built, built.images("train"), [0])


def test_batches_visit_every_item_of_an_epoch_once():
    found = [item for step in range(10) for item in batch_items(0, step, 12, 6)]
    for epoch in range(5):
        assert sorted(found[12 * epoch : 12 * epoch + 12]) == list(range(12))
    assert found[:12] != found[12:24]
    ragged = [item for step in range(12) for item in batch_items(0, step, 9, 6)]
    assert all(sorted(ragged[9 * epoch : 9 * epoch + 9]) == list(range(9)) for epoch in range(8))


def test_the_learning_rate_rises_then_falls_to_zero():
    shares = [learning_rate_share(step, 100) for step in range(100)]
    assert shares.index(max(shares)) in (4, 5)
    assert max(shares) == 1
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert shares[-1] < 0.01
    assert learning_rate_share(0, 1) == 1
