from modeling_decodepos.diagnosis.data.scenes import build_scene_data
from modeling_decodepos.imagenet import IMAGE_MEAN, MEAN_COLOUR
from training.views.sampling import MEAN_COLOUR as FILL


def test_the_mean_colour_is_the_mean_everywhere():
    assert tuple(round(255 * value) for value in IMAGE_MEAN) == MEAN_COLOUR == tuple(FILL.tolist())
    pasted = build_scene_data(2, 64, seed=0, objects=2).grid.pixels
    assert tuple(pasted[0, 0, :, -1, -1].tolist()) == MEAN_COLOUR
