"""Colour jitter, grey, negatives, blur and solarisation: parameters drawn in one place, applied in another.

The operations are those of PIL and torchvision on 8-bit images, done by OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from training.recipe import ViewArguments

BLUR_SIGMA = (0.1, 2.0)  # SoCo, in pixels of a 224-pixel view; a smaller view is blurred by the same share of it
SOLARIZE_THRESHOLD = 128


@dataclass(frozen=True)
class Photometric:
    """What is done to the colours of one view."""

    jitter: tuple[tuple[str, float], ...] = ()  # (operation, factor), in order
    grayscale: bool = False
    invert: bool = False
    blur_sigma: float = 0.0  # in pixels of a 224-pixel view
    solarize: bool = False


def sample_photometric(rng: np.random.Generator, args: ViewArguments, of_whole_image: bool) -> Photometric:
    """A random treatment; views of the whole image are blurred more and never solarised (as SoCo's first view)."""
    # All at once: a call takes longer than the number.
    to_jitter, to_gray, to_blur, to_solarize, sigma, *factors = rng.random(9).tolist()
    jitter: tuple[tuple[str, float], ...] = ()
    if to_jitter < args.jitter_probability:
        ranges = {
            "brightness": (max(0.0, 1 - args.brightness), 1 + args.brightness),
            "contrast": (max(0.0, 1 - args.contrast), 1 + args.contrast),
            "saturation": (max(0.0, 1 - args.saturation), 1 + args.saturation),
            "hue": (-args.hue, args.hue),
        }
        drawn = [
            (name, low + (high - low) * f) for (name, (low, high)), f in zip(ranges.items(), factors, strict=True)
        ]
        jitter = tuple(drawn[place] for place in rng.permutation(len(drawn)).tolist())
    blurred = to_blur < (args.blur_probability_whole if of_whole_image else args.blur_probability)
    return Photometric(
        jitter=jitter,
        grayscale=to_gray < args.grayscale_probability,
        invert=args.invert_probability > 0 and bool(rng.random() < args.invert_probability),
        blur_sigma=BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * sigma if blurred else 0.0,
        solarize=to_solarize < (0.0 if of_whole_image else args.solarize_probability),
    )


def apply_photometric(pixels: np.ndarray, treatment: Photometric) -> np.ndarray:
    """Treated (H, W, 3) uint8 RGB pixels; the input is left as it is."""
    for name, factor in treatment.jitter:
        pixels = _jitter(pixels, name, factor)
    if treatment.grayscale:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if treatment.invert:
        pixels = cv2.bitwise_not(pixels)
    if treatment.blur_sigma > 0:
        sigma = treatment.blur_sigma * pixels.shape[0] / 224
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    if treatment.solarize:
        pixels = cv2.LUT(pixels, _SOLARIZED)
    return pixels


def _jitter(pixels: np.ndarray, name: str, factor: float) -> np.ndarray:
    if name == "hue":
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
        turn = np.zeros(hsv.shape[1:], dtype=np.uint8)
        turn[:, 0] = int(factor * 255) % 256
        lines = hsv.reshape(len(hsv), -1)
        lines += turn.ravel()  # hue is a circle: it may wrap. Whole lines: adding to every third byte is far slower
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    if name == "brightness":
        return cv2.LUT(pixels, _blend_table(factor, 0.0))
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if name == "contrast":
        mean = round(cv2.sumElems(gray)[0] / gray.size)
        return cv2.LUT(pixels, _blend_table(factor, (1 - factor) * mean))
    return cv2.addWeighted(pixels, factor, cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), 1 - factor, 0)  # saturation


def _blend_table(factor: float, offset: float) -> np.ndarray:
    return np.minimum(np.maximum(_LEVELS * factor + offset, 0), 255).astype(np.uint8)


_LEVELS = np.arange(256)
_SOLARIZED = np.where(_LEVELS < SOLARIZE_THRESHOLD, _LEVELS, 255 - _LEVELS).astype(np.uint8)
