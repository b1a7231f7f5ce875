"""Regions from a SAM-type model, a tiny one with random weights."""

import logging

import numpy as np
import pytest
import torch

from dataset_scripts.proposals import Proposals, add_regions, recipe_of
from dataset_scripts.proposals.model_masks import _generator, without_doubles
from tests.dataset_scripts.proposals.pictures_of_regions import encode, noise, row


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    """A model that takes every point for a fine mask."""
    from transformers import SamConfig, SamImageProcessor, SamModel

    folder = tmp_path_factory.mktemp("sam")
    torch.manual_seed(0)
    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "mlp_dim": 16,
            "global_attn_indexes": [0],
            "window_size": 2,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "mlp_dim": 16,
            "iou_head_hidden_dim": 16,
            "iou_head_depth": 2,
        },
    )
    model = SamModel(config)
    with torch.no_grad():
        model.mask_decoder.iou_prediction_head.proj_out.bias.fill_(2.0)
        for network in model.mask_decoder.output_hypernetworks_mlps:
            network.proj_out.bias.normal_(std=5e4)  # steep borders: masks count as stable
    model.save_pretrained(folder)
    sizes = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    masks = {"mask_size": {"longest_edge": 16}, "mask_pad_size": {"height": 16, "width": 16}}
    SamImageProcessor(**sizes, **masks).save_pretrained(folder)
    return str(folder)


def test_masks_of_a_model_become_boxes_with_scores(sam, tmp_path):
    chosen = Proposals("masks", mask_model=sam, cache=str(tmp_path))
    entry = row(encode(noise(40, 25)), 40, 25)
    found = add_regions(entry, chosen)["regions"]
    boxes, scores = np.array(found["bbox"]), found["score"]
    assert len(boxes) == len(scores) >= 1
    assert scores == sorted(scores, reverse=True)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= (40, 25)).all()
    assert found["source"] == ["masks"] * len(boxes)
    _generator.cache_clear()
    assert add_regions(entry, chosen)["regions"] == found
    assert _generator.cache_info().currsize == 0  # from the cache, without the model


def test_the_recipe_knows_the_weights(sam, tmp_path):
    assert recipe_of(Proposals("masks", mask_model=sam))["model"].startswith("sha256:")
    assert recipe_of(Proposals("masks", mask_model="org/name"))["model"] == "org/name"
    assert recipe_of("masks") == "masks"


def test_what_is_no_such_model_is_refused(tmp_path, caplog):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    entry = row(encode(noise(80, 50)), 80, 50)
    with caplog.at_level(logging.CRITICAL), pytest.raises(ValueError, match="cannot be loaded as a model for mask"):
        add_regions(entry, Proposals("masks", mask_model=str(tmp_path)))


def test_of_doubles_the_better_one_stays():
    corners = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [20, 20, 30, 30], [0, 0, 10, 10]], np.float32)
    scores = np.array([0.5, 0.9, 0.7, 0.1, 0.5], np.float32)
    assert without_doubles(corners, scores).tolist() == [1, 2, 3]
    assert without_doubles(corners[:0], scores[:0]).tolist() == []
