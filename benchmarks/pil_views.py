"""The four views of the objective `both`, made the ordinary way: PIL, torchvision v1, loops over boxes.

This is the peer of `benchmarks.views` and `benchmarks.loader`, written as data sets of this kind usually are (SoCo's,
and the BYOL code it grew from). It does the same work with the same probabilities: the same crops, flips, colours and
blurs by the same law, region-collaborative cutout over the regions and a 3 x 3 grid of random boxes, and the regions
pasted, smaller and at another place, over a donor image. Pixels become float tensors before boxes are cut or pasted.

Where torchvision does not import, its transforms are replaced by the PIL calls that they make for a PIL image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import PIL
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from benchmarks.roi_align import has_torchvision_operators
from modeling_decodepos.augmentations.repositioning import FOREGROUND_SCALES
from training.recipe import ViewArguments
from training.views.colours import BLUR_SIGMA, SOLARIZE_THRESHOLD, Photometric
from training.views.normalise import IMAGE_MEAN, IMAGE_STD

Box = tuple[float, float, float, float]  # xyxy, in [0, 1] of the image or the view
Window = tuple[int, int, int, int]
Colours = Callable[[Image.Image], Image.Image]
# Name to (pixels (3, S, S), boxes (K, 4), valid (K,)), as a default collate function expects it.
Sample = dict[str, tuple[Tensor, Tensor, Tensor]]


class PilViews:
    """Makes the views of one image; regions are moved over the donor, and each view is flipped on its own."""

    def __init__(self, args: ViewArguments):
        self.args = args
        self.colours_whole = build_colours(args, of_whole_image=True)
        self.colours = build_colours(args, of_whole_image=False)
        self.to_tensor = build_to_tensor()

    def __call__(self, image: Image.Image, donor: Image.Image, boxes: Sequence[Box]) -> Sample:
        """The objective's views of an image with these regions."""
        args, size = self.args, self.args.view_size_px
        window, chosen = self._choose_crop(image, boxes)
        whole = (0, 0, image.width, image.height)
        views: Sample = {}

        pixels, inside = self._look(image, whole, chosen, size, self.colours_whole)
        views["whole_cut"] = self._pack(self._cut(pixels, inside), inside)
        pixels, inside = self._look(image, window, chosen, size, self.colours)
        views["crop"] = self._pack(pixels, inside)
        pixels, inside = self._look(image, window, chosen, args.small_view_px, self.colours)
        views["crop_cut_small"] = self._pack(self._cut(pixels, inside), inside)
        views["repositioned"] = self._reposition(image, donor, window, chosen)
        return views

    def _look(
        self, image: Image.Image, window: Window, boxes: Sequence[Box], size: int, colours: Colours
    ) -> tuple[Tensor, list[Box]]:
        """A window of the image as a tensor, and the boxes in it."""
        inside = [crop_box(box, window, image.size) for box in boxes]
        pixels = resized_crop(image, window, size)
        if random.random() < 0.5:
            pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            inside = [(1 - x2, y1, 1 - x1, y2) for x1, y1, x2, y2 in inside]
        return self.to_tensor(colours(pixels)), inside

    def _choose_crop(self, image: Image.Image, boxes: Sequence[Box]) -> tuple[Window, list[Box]]:
        """A window that shows half of the regions if one is found (half as many each time), and K regions in it."""
        args, demand = self.args, max(self.args.num_regions // 2, 1)
        window: Window = (0, 0, image.width, image.height)
        usable: list[Box] = []
        for _ in range(args.crop_attempts):
            window = sample_window(image.size, args)
            usable = [
                box
                for box in boxes
                if shorter_side(box) >= args.min_region_side
                and shorter_side(crop_box(box, window, image.size)) >= args.min_region_side
            ]
            if len(usable) >= demand:
                break
            demand = max(demand // 2, 1)
        if not usable:
            x1, y1, x2, y2 = window
            usable = [(x1 / image.width, y1 / image.height, x2 / image.width, y2 / image.height)]
        return window, random.sample(usable, min(args.num_regions, len(usable)))

    def _cut(self, pixels: Tensor, boxes: Sequence[Box]) -> Tensor:
        mask = self._cut_mask([*boxes, *sample_grid_boxes()], pixels.shape[-1])
        pixels[:, mask] = 0
        return pixels

    def _cut_mask(self, boxes: Sequence[Box], size: int) -> Tensor:
        """Region-collaborative cutout: each box, largest first, loses a rectangle unless it lost enough already."""
        args = self.args
        mask = torch.zeros((size, size), dtype=torch.bool)
        ratio = random.uniform(args.cut_ratio_min, args.cut_ratio_max)
        if random.random() >= args.cut_probability:
            return mask
        rounded = [to_pixels(box, size) for box in boxes]
        for x1, y1, x2, y2 in sorted(rounded, key=lambda box: -(box[2] - box[0]) * (box[3] - box[1])):
            width, height = x2 - x1, y2 - y1
            if width <= 0 or height <= 0:
                continue
            share = float(mask[y1:y2, x1:x2].sum()) / (width * height)
            if share > ratio:
                mask[y1:y2, x1:x2] = False
                share = 0.0
            side = math.sqrt(ratio - share)
            left, top = x1 + random.uniform(0, width * (1 - side)), y1 + random.uniform(0, height * (1 - side))
            mask[round(top) : round(top + height * side), round(left) : round(left + width * side)] = True
        return mask

    def _reposition(
        self, image: Image.Image, donor: Image.Image, window: Window, boxes: Sequence[Box]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The crop's regions, scaled and moved by one vector, pasted over a crop of the donor."""
        args, size = self.args, self.args.view_size_px
        low, high = FOREGROUND_SCALES[args.repositioning]
        inside = [crop_box(box, window, image.size) for box in boxes]
        kept = self._limit_coverage(inside, args.max_foreground / high**2)
        side = round(size * random.uniform(low, high)) if kept else size
        pixels, inside = self._look(image, window, boxes, side, self.colours)
        background, _ = self._look(donor, sample_window(donor.size, args), [], size, self.colours)
        if not kept:
            return self._pack(background, [])
        rounded = [to_pixels(inside[row], side) for row in kept]
        move_x = random.randint(-min(b[0] for b in rounded), size - max(b[2] for b in rounded))
        move_y = random.randint(-min(b[1] for b in rounded), size - max(b[3] for b in rounded))
        moved = [(x1 + move_x, y1 + move_y, x2 + move_x, y2 + move_y) for x1, y1, x2, y2 in rounded]
        units: list[Box] = [(x1 / size, y1 / size, x2 / size, y2 / size) for x1, y1, x2, y2 in moved]
        cut = self._cut_mask(units, size) if args.cut_foreground else torch.zeros((size, size), dtype=torch.bool)
        canvas = background.clone()
        for (x1, y1, x2, y2), (a, b, c, d) in zip(rounded, moved, strict=True):
            canvas[:, b:d, a:c] = pixels[:, y1:y2, x1:x2]
        canvas[:, cut] = background[:, cut]
        return self._pack(canvas, units)

    def _limit_coverage(self, boxes: Sequence[Box], most: float) -> list[int]:
        """Rows of the boxes that are left when the largest are dropped until the others cover little enough."""
        size = self.args.view_size_px
        rounded = [to_pixels(box, size) for box in boxes]
        kept = sorted(range(len(boxes)), key=lambda row: (rounded[row][2] - rounded[row][0]) * rounded[row][3])
        while kept:
            mask = torch.zeros((size, size), dtype=torch.bool)
            for row in kept:
                x1, y1, x2, y2 = rounded[row]
                mask[y1:y2, x1:x2] = True
            if float(mask.sum()) / size**2 <= most:
                break
            kept.pop()
        return kept

    def _pack(self, pixels: Tensor, boxes: Sequence[Box]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes padded to one length."""
        count = self.args.num_regions
        padded = [*boxes, *[(0.0, 0.0, 1.0, 1.0)] * (count - len(boxes))]
        return pixels, torch.tensor(padded), torch.tensor([row < len(boxes) for row in range(count)])


def resized_crop(image: Image.Image, window: Window, size: int) -> Image.Image:
    """What torchvision's `resized_crop` does to a PIL image."""
    return image.crop(window).resize((size, size), Image.Resampling.BILINEAR)


def crop_box(box: Box, window: Window, image_size: tuple[int, int]) -> Box:
    """A unit box of the image, in unit coordinates of the window and clipped to it."""
    (x1, y1, x2, y2), (left, top, right, bottom), (width, height) = box, window, image_size
    return (
        min(max((x1 * width - left) / (right - left), 0.0), 1.0),
        min(max((y1 * height - top) / (bottom - top), 0.0), 1.0),
        min(max((x2 * width - left) / (right - left), 0.0), 1.0),
        min(max((y2 * height - top) / (bottom - top), 0.0), 1.0),
    )


def shorter_side(box: Box) -> float:
    """Length of a box's shorter side."""
    return min(box[2] - box[0], box[3] - box[1])


def to_pixels(box: Box, size: int) -> Window:
    """A unit box in whole pixels of a square view."""
    x1, y1, x2, y2 = (round(min(max(value, 0.0), 1.0) * size) for value in box)
    return x1, y1, x2, y2


def sample_window(image_size: tuple[int, int], args: ViewArguments) -> Window:
    """What torchvision's `RandomResizedCrop.get_params` draws, as left, top, right, bottom."""
    width, height = image_size
    for _ in range(10):
        area = width * height * random.uniform(args.crop_scale_min, args.crop_scale_max)
        aspect = math.exp(random.uniform(-math.log(args.crop_aspect), math.log(args.crop_aspect)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def sample_grid_boxes() -> list[Box]:
    """One random box around each cell of a 3 x 3 grid, clipped to the view."""
    boxes: list[Box] = []
    for row in range(3):
        for column in range(3):
            x, y = (column + random.uniform(0.25, 0.75)) / 3, (row + random.uniform(0.25, 0.75)) / 3
            area, aspect = random.uniform(0.12, 0.3), math.exp(random.uniform(math.log(0.5), math.log(2)))
            width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
            boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return boxes


# --- colours


class GaussianBlur:
    """PIL's blur with a random radius, as in the code of SoCo, BYOL and MoCo."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The blurred image."""
        radius = random.uniform(*BLUR_SIGMA) * image.width / 224
        return image.filter(ImageFilter.GaussianBlur(radius))


def build_colours(args: ViewArguments, of_whole_image: bool) -> Colours:
    """The random treatment of a view's colours: torchvision's transforms, or the PIL calls that they make."""
    blur = args.blur_probability_whole if of_whole_image else args.blur_probability
    solarize = 0.0 if of_whole_image else args.solarize_probability
    if not has_torchvision_operators():
        return PilColours(args, blur, solarize)
    from torchvision import transforms

    jitter = transforms.ColorJitter(args.brightness, args.contrast, args.saturation, args.hue)
    return transforms.Compose(
        [
            transforms.RandomApply([jitter], p=args.jitter_probability),
            transforms.RandomGrayscale(p=args.grayscale_probability),
            transforms.RandomApply([GaussianBlur()], p=blur),
            transforms.RandomSolarize(SOLARIZE_THRESHOLD, p=solarize),
        ]
    )


def peer_name() -> str:
    """What the peer is made of here."""
    if not has_torchvision_operators():
        return f"PIL {PIL.__version__} (no working torchvision: the PIL calls that its transforms make)"
    import torchvision

    return f"PIL {PIL.__version__} and torchvision {torchvision.__version__}, transforms v1"


def build_to_tensor() -> Callable[[Image.Image], Tensor]:
    """`ToTensor` and `Normalize`: torchvision's, or the same steps."""
    if not has_torchvision_operators():
        return to_normalised_tensor
    from torchvision import transforms

    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGE_MEAN, IMAGE_STD)])


class PilColours:
    """The same treatment without torchvision."""

    def __init__(self, args: ViewArguments, blur: float, solarize: float):
        self.args, self.blur, self.solarize = args, blur, solarize

    def __call__(self, image: Image.Image) -> Image.Image:
        """The treated image."""
        args = self.args
        if random.random() < args.jitter_probability:
            strengths = {"brightness": args.brightness, "contrast": args.contrast, "saturation": args.saturation}
            jitter = [(name, random.uniform(max(0, 1 - s), 1 + s)) for name, s in strengths.items()]
            jitter.append(("hue", random.uniform(-args.hue, args.hue)))
            random.shuffle(jitter)
            image = colours_by_pil(image, Photometric(jitter=tuple(jitter)))
        if random.random() < args.grayscale_probability:
            image = colours_by_pil(image, Photometric(grayscale=True))
        if random.random() < self.blur:
            image = GaussianBlur()(image)
        if random.random() < self.solarize:
            image = colours_by_pil(image, Photometric(solarize=True))
        return image


def colours_by_pil(image: Image.Image, treatment: Photometric) -> Image.Image:
    """A given treatment by the PIL calls that torchvision makes for PIL images."""
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for name, factor in treatment.jitter:
        if name == "hue":
            hue, saturation, value = image.convert("HSV").split()
            turned = np.array(hue, dtype=np.uint8)
            turned += np.uint8(int(factor * 255) % 256)
            image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
        else:
            image = enhancers[name](image).enhance(factor)
    if treatment.grayscale:
        gray = np.array(image.convert("L"))
        image = Image.fromarray(np.dstack([gray, gray, gray]))
    if treatment.blur_sigma > 0:
        image = image.filter(ImageFilter.GaussianBlur(treatment.blur_sigma * image.width / 224))
    return ImageOps.solarize(image, SOLARIZE_THRESHOLD) if treatment.solarize else image


def to_normalised_tensor(image: Image.Image) -> Tensor:
    """A PIL image as a normalised float tensor, step by step as torchvision does it."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return pixels.sub_(mean).div_(std)
