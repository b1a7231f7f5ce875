"""Colours of ImageNet: what networks are normalised with, and what stands where a picture has nothing to show."""

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pixels in [0, 1]."""

MEAN_COLOUR = (124, 116, 104)
"""The mean as 8-bit pixels: (almost) zero once normalised. It is the colour measured on the paper's figure."""
