"""A picture of where a region is found again, elsewhere and before another image, by the weights a run began with and
by those it ended with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from modeling_decodepos.diagnosis.report.figures import as_pixels
from modeling_decodepos.drawing.page import MINUS
from modeling_decodepos.drawing.sheet import BOX, Sheet
from modeling_decodepos.modeling_decodepos import DecodePosModel
from training.probes.during import OnlineMeasures, embed
from training.probes.search import ANSWER, cover, heat

ROWS = 5


def shown_exchanges(online: OnlineMeasures) -> list[int]:
    """The first exchanges of other classes: of the regions whose neighbours are shown, those that were moved."""
    if online.exchanges is None:
        return []
    numbers = {region: number for number, region in enumerate(online.exchanges.regions.tolist())}
    return [numbers[region] for region in online.shown_regions(ROWS) if region in numbers]


def find_moved(online: OnlineMeasures, model: DecodePosModel, numbers: list[int]) -> list[tuple[Tensor, float]]:
    """Of each exchange, (P,) cosines of its region with boxes that cover the picture it was moved to (`cover_like`),
    and its cosine with itself there.

    They are taken after subtracting the mean of the gallery's regions, as for nearest neighbours in a diagnosis.
    """
    exchanges = online.exchanges
    assert exchanges is not None
    mean, found = embed(model, online.gallery.pixels, online.gallery.boxes).double().mean(0), []
    for number in numbers:
        pixels = torch.stack([online.queries.pixels[exchanges.images[number]], exchanges.moved[number]])
        target = exchanges.moved_boxes[number]
        rows = embed(model, pixels, [exchanges.boxes[number][None], torch.cat([cover_like(target), target[None]])])
        centred = rows.double() - mean
        cosines = F.cosine_similarity(centred[:1], centred[1:])
        found.append((cosines[:-1], float(cosines[-1])))
    return found


def cover_like(box: Tensor) -> Tensor:
    """(P, 4) boxes of the size of one, over the whole picture."""
    return cover(box[2:] - box[:2])


def draw_similarity(online: OnlineMeasures, start: DecodePosModel, after: DecodePosModel) -> Image.Image | None:
    """A row for each of the first regions: where it was, where it is, and how like it each network finds every place.

    The yellow box is the region, the other one the network's answer. None where no region could be moved.
    """
    exchanges, numbers = online.exchanges, shown_exchanges(online)
    if exchanges is None or not numbers:
        return None
    titles = ["this region …", "… is where, in this picture?", "before training", "after training"]
    sheet = Sheet(titles, len(numbers), tile=190, gap=10, left=10, below=26)
    answers = [find_moved(online, model, numbers) for model in (start, after)]
    for row, number in enumerate(numbers):
        moved, box = as_pixels(exchanges.moved[number]), exchanges.moved_boxes[number]
        here = as_pixels(online.queries.pixels[exchanges.images[number]])
        sheet.put(row, 0, here, "", [(exchanges.boxes[number], BOX)], smooth=True)
        sheet.put(row, 1, moved, smooth=True)
        for column, found in enumerate(answers, start=2):
            (similarity, itself), boxes = found[row], cover_like(box)
            frames = [(box, BOX), (boxes[similarity.argmax()], ANSWER)]
            note = f"cosine: the region {itself:.2f}, the best {max(float(similarity.max()), itself):.2f}"
            sheet.put(row, column, heat(moved, boxes, similarity), note.replace("-", MINUS), frames, smooth=True)
    return sheet.image
