"""A page where a picture and a model go in, and what leaks into the feature of one box comes out.

    python app.py

`DECODEPOS_MODEL` names a checkpoint to offer beside random weights, a Hub id or a local folder.
"""

from __future__ import annotations

from functools import lru_cache
from html import escape
from typing import Any

import gradio as gr
from offered_models import TYPED, NoSuchModel, check_id, choices, explain, find_model
from PIL import Image
from style import STYLE
from torch import Tensor
from visitor_pictures import (
    BOX_SIDES,
    LARGEST_FILE,
    SCENES,
    VIEW_PX,
    NotAPicture,
    draw_scene,
    place_box,
    read_view,
)

from modeling_decodepos.looking.found import FRAME, draw_box, results
from modeling_decodepos.looking.leaks import CommonAnswers, ask, ask_common
from modeling_decodepos.page import message

TITLE = "What leaks into a feature?"
LEAD = """
# What leaks into a feature?

A feature of an object should say what the object is. In vision networks it also says what stands **around** it and
**where** it lies. Pick a picture and a model, tap on an object, and see both. Uploads are deleted within two hours.
"""
OWN = "my picture"
SHOWN_PX = 480


@lru_cache(maxsize=2)
def _common(choice: str, typed: str) -> CommonAnswers:
    model = find_model(choice, typed)
    try:
        return ask_common(model, VIEW_PX)
    except (ValueError, RuntimeError) as error:  # features that are not finite, no memory
        raise NoSuchModel(explain(model.name, str(error))) from error


def _view(source: str, upload: str | None) -> tuple[Tensor, Tensor]:
    """The picture of a choice, and the box to begin with."""
    if source != OWN:
        return draw_scene(_SCENES.index(source))
    if upload is None:
        raise NotAPicture("Upload a picture first.")
    return read_view(upload), place_box(0.5, 0.5, 0.4)


_SCENES = [f"scene {number + 1}" for number in range(SCENES)]


def look(
    source: str, upload: str | None, x: float, y: float, side: float, choice: str, typed: str | None
) -> tuple[Image.Image | None, str]:
    """The picture with its box, and what was found about it.

    `x` and `y` are the box's centre and `side` its size, in per cent of the picture; `upload` is the path of the
    visitor's own picture, `typed` the Hub id of another model, where those are chosen.
    """
    shown = None
    try:
        view, _ = _view(source, upload)
        box = place_box(x / 100, y / 100, side / 100)
        shown = draw_box(view.permute(1, 2, 0).contiguous().numpy(), box, SHOWN_PX)
        common = _common(choice, check_id(typed or "") if choice == TYPED else "")
        return shown, str(results(common, ask(common, view, box), view, box))
    except (NotAPicture, NoSuchModel) as error:
        gr.Warning(escape(str(error)), title="This did not work")  # results may be out of sight
        return shown, str(FRAME.format(message(str(error), "bad")))


def begin(source: str, upload: str | None) -> tuple[float, float, float]:
    """Where the box of a picture begins: centre and side in per cent."""
    try:
        x1, y1, x2, y2 = _view(source, upload)[1].tolist()
    except NotAPicture:
        return 50, 50, 40
    side = min(max(x2 - x1, y2 - y1), BOX_SIDES[1])
    return round(50 * (x1 + x2)), round(50 * (y1 + y2)), round(100 * side)


def tap(event: gr.SelectData) -> tuple[float, float]:
    """The centre of the box, from where the picture was tapped."""
    x, y = event.index
    return round(100 * x / SHOWN_PX), round(100 * y / SHOWN_PX)


def build() -> gr.Blocks:
    """The page and its events."""
    x, y, side = begin(_SCENES[0], None)
    offered = choices()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(LEAD)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(
                    label="what the model sees: tap on an object", interactive=False, buttons=[], elem_id="picture"
                )
                source = gr.Radio([*_SCENES, OWN], value=_SCENES[0], label="picture")
                upload = gr.UploadButton("Upload a picture", file_types=[".jpg", ".jpeg", ".png", ".webp"], size="sm")
                model = gr.Radio(offered, value=offered[0], label="model")
                about_id: dict[str, Any] = {"value": "", "placeholder": "facebook/dinov2-small", "max_length": 200}
                typed = gr.Textbox(label="id of a model on the Hub", visible=False, submit_btn="Ask", **about_id)
                with gr.Accordion("box, by numbers", open=False):
                    sliders = [
                        gr.Slider(0, 100, value=x, step=1, label="centre from the left, %"),
                        gr.Slider(0, 100, value=y, step=1, label="centre from the top, %"),
                        gr.Slider(*(100 * end for end in BOX_SIDES), value=side, step=1, label="side, %"),
                    ]
            with gr.Column(scale=3, min_width=320):
                found = gr.HTML(elem_id="found")

        everything: dict[str, Any] = {
            "fn": look,
            "inputs": [source, upload, *sliders, model, typed],
            "outputs": [picture, found],
            "concurrency_id": "model",
            "concurrency_limit": 1,  # a free machine has two cores: two visitors at once would both wait longer
        }
        page.load(**everything, api_name="look")
        private: dict[str, Any] = {"api_visibility": "private"}
        again = everything | private
        starts = {"fn": begin, "inputs": [source, upload], "outputs": sliders} | private
        source.input(**starts).then(**again)
        upload.upload(lambda: OWN, outputs=source, **private).then(**starts).then(**again)
        picture.select(tap, outputs=sliders[:2], **private).then(**again)
        for slider in sliders:
            slider.release(**again)
        model.input(lambda choice: gr.update(visible=choice == TYPED), model, typed, **private).then(**again)
        typed.submit(**again)
    return page.queue(max_size=20)


FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
LAUNCH: dict[str, Any] = {
    "max_file_size": LARGEST_FILE,
    "show_error": False,
    "ssr_mode": False,
    "css": STYLE,
    "theme": gr.themes.Default(font=FONT, font_mono=("ui-monospace", "monospace")),
    "footer_links": [],
}

if __name__ == "__main__":
    build().launch(**LAUNCH)
