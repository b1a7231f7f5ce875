"""Regions from a segmentation map: the boxes of the connected parts of every class."""

import cv2
import numpy as np

from modeling_decodepos.schema import SEGMENTATION_IGNORE

from .inputs import FloatArray, ProposalInput

MIN_AREA_FRACTION = 0.001  # of the image; what is smaller is a crumb of an object that something else hides


def map_masks(picture: ProposalInput) -> tuple[FloatArray, None]:
    """Boxes of the parts, class by class; none where there is no map."""
    classes = picture.segmentation_map()
    if classes is None:
        return np.zeros((0, 4), np.float32), None
    parts = [np.zeros((0, 4), np.int32)]
    for value in np.unique(classes):
        if value not in (0, SEGMENTATION_IGNORE):
            _, _, found, _ = cv2.connectedComponentsWithStats((classes == value).astype(np.uint8), connectivity=8)
            parts.append(found[1:][found[1:, cv2.CC_STAT_AREA] >= MIN_AREA_FRACTION * classes.size, :4])
    return np.concatenate(parts).astype(np.float32), None
