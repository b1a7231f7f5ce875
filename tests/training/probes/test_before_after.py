import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ResNetConfig

from modeling_decodepos.configuration_decodepos import DecodePosConfig
from modeling_decodepos.data.scenes import render_scene
from modeling_decodepos.modeling_decodepos import DecodePosModel
from training.probes.before_after import (
    ProbeResult,
    compare_triplets,
    draw_probe,
    probe_model,
    sample_triplet,
)


class Extractor(nn.Module):
    """Stands for a model: `embed` turns (3, H, W) pixels in [0, 1] and one box into a vector."""

    def __init__(self, embed):
        super().__init__()
        self.embed = embed

    def forward(self, pixel_values, regions):
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        pixels = pixel_values * std + mean
        assert pixels.min() > -1e-5  # ImageNet normalisation undone gives colours
        assert pixels.max() < 1 + 1e-5
        rows = [self.embed(image, boxes[0]) for image, boxes in zip(pixels, regions, strict=True)]
        valid = torch.ones(len(rows), 1, dtype=torch.bool)
        return SimpleNamespace(region_embeddings=torch.stack(rows)[:, None], valid_regions=valid)


def colours(pixels):
    """Histogram of the colours of (3, N) pixels."""
    levels = (pixels * 3.999).clamp(0, 3).long()
    return torch.bincount(levels[0] * 16 + levels[1] * 4 + levels[2], minlength=64).float() / pixels.shape[1]


def inside(image, box):
    x1, y1, x2, y2 = (box * image.shape[-1]).round().long()
    return colours(image[:, y1:y2, x1:x2].flatten(1))


def outside(image, box):
    x1, y1, x2, y2 = (box * image.shape[-1]).round().long()
    mask = torch.ones(image.shape[-2:], dtype=torch.bool)
    mask[y1:y2, x1:x2] = False
    return colours(image[:, mask])


def tiny_model():
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic")
    return DecodePosModel(DecodePosConfig(backbone_config=backbone, region_bins=4))


def test_content_wins_for_features_of_the_pixels_inside_the_box():
    result = probe_model(Extractor(inside), seed=0, count=60, size_px=48)
    assert result.content_wins > 0.9
    assert result.cosine_same > result.cosine_other + 0.3


@pytest.mark.parametrize("embed", [lambda image, box: box, outside], ids=["place", "surroundings"])
def test_content_loses_for_features_of_place_or_surroundings(embed):
    result = probe_model(Extractor(embed), seed=0, count=60, size_px=48)
    assert result.content_wins < 0.05
    assert result.cosine_other > 0.8


def test_a_collapsed_model_is_a_coin_toss_with_no_direction():
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)

    def collapsed(image, box):
        return direction + 1e-7 * torch.randn(16, generator=noise)  # rounding noise must not look like a finding

    result = probe_model(Extractor(collapsed), seed=0, count=20, size_px=32)
    assert result.content_wins == 0.5
    assert result.cosine_same == result.cosine_other == 0


def test_triplets_change_what_they_say_and_nothing_else():
    for index in range(12):
        triplet = sample_triplet(3, index, 64)
        anchor, same, other = (spec.objects[-1] for spec in (triplet.anchor, triplet.same, triplet.other))
        assert (same.shape, same.texture, same.colors, same.size_px, same.angle, same.seed) == (
            anchor.shape, anchor.texture, anchor.colors, anchor.size_px, anchor.angle, anchor.seed,
        )  # fmt: skip
        assert np.hypot(same.center[0] - anchor.center[0], same.center[1] - anchor.center[1]) > 8
        assert triplet.same.background != triplet.anchor.background
        assert triplet.same.objects[:-1] != triplet.anchor.objects[:-1]
        assert (other.center, other.size_px) == (anchor.center, anchor.size_px)
        assert other.class_index != anchor.class_index
        assert other.colors != anchor.colors
        assert triplet.other.objects[:-1] == triplet.anchor.objects[:-1]
        assert triplet.other.background == triplet.anchor.background


def test_the_same_object_is_drawn_with_the_same_bytes_and_wholly_in_view():
    for index in range(12):
        triplet = sample_triplet(0, index, 64)
        cut = []
        for spec in (triplet.anchor, triplet.same):
            scene = render_scene(spec)
            assert scene.visible[-1] == 1
            x1, y1, x2, y2 = (scene.boxes[-1] * 64).round().astype(int)
            own = np.pad(scene.instances[y1:y2, x1:x2] == len(spec.objects), 1)
            core = own[1:-1, 1:-1] & own[:-2, 1:-1] & own[2:, 1:-1] & own[1:-1, :-2] & own[1:-1, 2:]
            core &= own[:-2, :-2] & own[2:, 2:] & own[:-2, 2:] & own[2:, :-2]
            cut.append((core, scene.pixels[y1:y2, x1:x2]))
        (core, anchor), (moved_core, moved) = cut
        assert core.any()
        assert (core == moved_core).all()
        assert (anchor[core] == moved[core]).all()


def test_the_same_seed_asks_the_same_questions_and_another_seed_others():
    first, again, other = ([sample_triplet(seed, index, 48) for index in range(3)] for seed in (1, 1, 2))
    assert first == again != other
    first = probe_model(Extractor(inside), seed=1, count=8, size_px=32, batch_size=5)
    assert probe_model(Extractor(inside), seed=1, count=8, size_px=32, batch_size=24) == first


def test_model_is_measured_in_evaluation_mode_and_left_as_it_was():
    model = tiny_model().train()
    model.backbone.embedder.eval()  # a frozen part must stay frozen
    modes = [module.training for module in model.modules()]
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    first = probe_model(model, seed=0, count=4, size_px=32)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())
    # Batch statistics would make the result depend on how the images are batched.
    second = probe_model(model, seed=0, count=4, size_px=32, batch_size=3)
    assert np.allclose(first.cosines_same, second.cosines_same, atol=2e-3)


def test_model_is_left_as_it_was_after_an_error():
    def broken(image, box):
        raise RuntimeError("out of memory")

    model = Extractor(broken).train()
    with pytest.raises(RuntimeError, match="out of memory"):
        probe_model(model, count=2, size_px=32)
    assert model.training


def test_cosines_are_centred():
    # A large shared part makes every raw cosine about 1, and hides that two of three embeddings are opposite.
    embeddings = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]], [[-1.0, 0.0], [-1.0, 0.1], [1.0, 0.0]]]) + 100
    result = compare_triplets(embeddings.double(), seed=0, size_px=32)
    assert result.content_wins == 1
    assert result.cosine_same > 0.9
    assert result.cosine_other < -0.9


def test_interval_holds_the_share_and_narrows_with_more_triplets():
    few = probe_model(Extractor(lambda image, box: image.mean((1, 2))), count=12, size_px=32)
    rng = torch.Generator().manual_seed(0)
    many = compare_triplets(torch.randn(600, 3, 8, generator=rng, dtype=torch.float64), seed=0, size_px=32)
    assert few.interval[0] <= few.content_wins <= few.interval[1]
    assert many.interval[0] < 0.5 < many.interval[1]
    assert 0.06 < many.interval[1] - many.interval[0] < 0.1  # 2 x 1.96 x 0.5 / sqrt(600) = 0.08


def test_result_survives_json():
    result = probe_model(Extractor(inside), count=4, size_px=32)
    assert ProbeResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_not_finite_embeddings_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        probe_model(Extractor(lambda image, box: box * float("nan")), count=2, size_px=32)


def test_picture_shows_the_first_triplets_and_refuses_two_different_probes():
    before = probe_model(Extractor(outside), seed=0, count=6, size_px=32)
    after = probe_model(Extractor(inside), seed=0, count=6, size_px=32)
    picture = draw_probe(before, after, rows=2)
    assert picture.width > picture.height > 1100
    assert np.array_equal(np.asarray(picture), np.asarray(draw_probe(before, after, rows=2)))
    # The anchor of triplet 0, as the network sees it, enlarged sixteen times.
    top_left = np.asarray(picture)[60:572, 60:572][8::16, 8::16]
    drawn = render_scene(sample_triplet(0, 0, 32).anchor).pixels
    assert (top_left == drawn).all(-1).mean() > 0.6  # the rest lies under the box
    with pytest.raises(ValueError, match="different probes"):
        draw_probe(before, probe_model(Extractor(inside), seed=1, count=6, size_px=32))
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_probe(None, None)
