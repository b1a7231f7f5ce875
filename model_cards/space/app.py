"""A page where a picture and a model go in, and what the model's features hold comes out: look, diagnose, embed.

    python app.py

`DECODEPOS_MODEL` names one more checkpoint to offer, a Hub id or a local folder.
"""

from __future__ import annotations

import sys
from collections import deque
from functools import lru_cache
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

try:
    import gradio as gr
except ImportError:
    sys.exit("This page needs gradio: pip install -r requirements.txt (beside app.py), in an environment of its own.")
from markupsafe import Markup
from PIL import Image
from torch import Tensor

_HERE = Path(__file__).resolve().parent
# The library lies beside this file in the Space, and two folders up in a checkout.
sys.path.append(str(next(folder for folder in (_HERE, _HERE.parents[1]) if (folder / "modeling_decodepos").is_dir())))

from offered_models import TYPED, NoSuchModel, check_id, choices, explain, find_model  # noqa: E402
from style import STYLE  # noqa: E402
from visitor_pictures import (  # noqa: E402
    BOX_SIDES,
    LARGEST_FILE,
    SCENES,
    VIEW_PX,
    NotAPicture,
    draw_scene,
    photo_view,
    place_box,
    read_view,
)

from modeling_decodepos.diagnosis.models.features import read_features  # noqa: E402
from modeling_decodepos.diagnosis.models.load import FeatureModel  # noqa: E402
from modeling_decodepos.diagnosis.report.figures import as_pixels  # noqa: E402
from modeling_decodepos.diagnosis.report.page import save_report  # noqa: E402
from modeling_decodepos.diagnosis.report.verdicts import summarise  # noqa: E402
from modeling_decodepos.diagnosis.run import diagnose as run_diagnosis  # noqa: E402
from modeling_decodepos.drawing.page import message  # noqa: E402
from modeling_decodepos.embedding.run import embed as run_embed  # noqa: E402
from modeling_decodepos.looking.found import FRAME, draw_box, figures, results, show_figure  # noqa: E402
from modeling_decodepos.looking.leaks import CommonAnswers, ask, ask_common  # noqa: E402
from modeling_decodepos.looking.run import Seen  # noqa: E402
from modeling_decodepos.looking.sheet import show_alike  # noqa: E402

TITLE = "What leaks into a feature?"
LEAD = """
# What leaks into a feature?

A feature of an object should say what the object is. In vision networks it also says what stands **around** it and
**where** it lies. Tap on an object, and switch between the network **before** and **after** training. Uploads are
deleted within two hours.
"""
PHOTO, OWN = "photo", "my picture"
SHOWN_PX = 480
DIAGNOSED_IMAGES, DIAGNOSED_MEASURES = 24, "position,context,same_object"

_SCENES = [f"scene {number + 1}" for number in range(SCENES)]
_written: deque[TemporaryDirectory[str]] = deque(maxlen=8)  # files on their way to visitors; older ones are removed


@lru_cache(maxsize=3)
def _common(choice: str, typed: str) -> CommonAnswers:
    model = find_model(choice, typed)
    try:
        return ask_common(model, VIEW_PX)
    except (ValueError, RuntimeError) as error:  # features that are not finite, no memory
        raise NoSuchModel(explain(model.name, str(error))) from error


def _chosen(choice: str, typed: str | None) -> tuple[str, str]:
    return choice, check_id(typed or "") if choice == TYPED else ""


def _view(source: str, upload: str | None) -> tuple[Tensor, Tensor]:
    """The picture of a choice, and the box to begin with."""
    if source == PHOTO:
        return photo_view()
    if source != OWN:
        return draw_scene(_SCENES.index(source))
    if upload is None:
        raise NotAPicture("Upload a picture first.")
    return read_view(upload), place_box(0.5, 0.5, 0.4)


def _refused(error: Exception) -> str:
    gr.Warning(escape(str(error)), title="This did not work")  # results may be out of sight
    return str(FRAME.format(message(str(error), "bad")))


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
        common = _common(*_chosen(choice, typed))
        return shown, _looked(common, view, box)
    except (NotAPicture, NoSuchModel) as error:
        return shown, _refused(error)


def _looked(common: CommonAnswers, view: Tensor, box: Tensor) -> str:
    leaks = ask(common, view, box)
    cells = read_features(common.model, view[None], cells=True)[-1]
    x, y = ((box[:2] + box[2:]) / 2).tolist()
    alike = show_alike(Seen(common, cells, [leaks]), 0, as_pixels(view), (x, y))
    first = [
        show_figure(leaks.colors[-1], "the map's three strongest directions, as colours"),
        show_figure(alike, "how like the middle of the box each place is: bright is alike"),
        show_figure(draw_box(leaks.heat[-1], box, 320), "which pixels the box's feature answers to"),
    ]
    return str(FRAME.format(figures(first)) + Markup("\n") + results(common, leaks, view, box))


def diagnose(choice: str, typed: str | None) -> tuple[str, str | None]:
    """Verdicts on the model over drawn scenes, and the page with every number."""
    try:
        model = _common(*_chosen(choice, typed)).model
        found = _try(model, lambda: run_diagnosis(
            model, images=DIAGNOSED_IMAGES, size_px=VIEW_PX, random_seeds=1, measures=DIAGNOSED_MEASURES
        ))  # fmt: skip
    except NoSuchModel as error:
        return _refused(error), None
    head, *lines = summarise(found.models[0]).splitlines()
    said = Markup("").join(Markup("<p>{}</p>").format(line.strip()) for line in lines)
    note = Markup(
        '<p class="note">{} drawn scenes; one set of random weights beside it. decodepos diagnose says more.</p>'
    )
    page = Markup("<h3>{}</h3>{}{}").format(head, said, note.format(DIAGNOSED_IMAGES))
    return str(FRAME.format(page)), str(save_report(found, _new_folder()))


def embed(source: str, upload: str | None, choice: str, typed: str | None) -> tuple[str, str | None]:
    """The features of every place of the picture, as a file."""
    try:
        view, _ = _view(source, upload)
        model = _common(*_chosen(choice, typed)).model
        folder = _new_folder()
        (folder / "pictures").mkdir()
        Image.fromarray(as_pixels(view)).save(folder / "pictures" / "picture.png")
        made = _try(model, lambda: run_embed(
            model, folder / "pictures", folder / "features.safetensors", features=("image", "patches"), size_px=VIEW_PX
        ))  # fmt: skip
    except (NotAPicture, NoSuchModel) as error:
        return _refused(error), None
    count = sum(made.about["rows"].values())
    said = Markup(
        "<p>{} features of {}: of the picture as a whole, and of each cell of the map, with its box.</p>"
        "<pre>from modeling_decodepos.embedding import load_features\n\n"
        'table = load_features("features.safetensors", "patches")  # box (N, 4), feature (N, C)</pre>'
    )
    return str(FRAME.format(said.format(count, model.name))), str(made.path)


def _try(model: FeatureModel, call: Any) -> Any:
    try:
        return call()
    except (ValueError, RuntimeError) as error:
        raise NoSuchModel(explain(model.name, str(error))) from error


def _new_folder() -> Path:
    if len(_written) == _written.maxlen:
        _written.popleft().cleanup()
    _written.append(TemporaryDirectory())
    return Path(_written[-1].name)


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
    x, y, side = begin(PHOTO, None)
    offered = choices()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(LEAD)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                model = gr.Radio(offered, value=offered[1], label="network", elem_id="network")
                about_id: dict[str, Any] = {"value": "", "placeholder": "facebook/dinov2-small", "max_length": 200}
                typed = gr.Textbox(label="id of a model on the Hub", visible=False, submit_btn="Ask", **about_id)
                picture = gr.Image(
                    label="what the model sees: tap on an object", interactive=False, buttons=[], elem_id="picture"
                )
                source = gr.Radio([PHOTO, *_SCENES, OWN], value=PHOTO, label="picture")
                upload = gr.UploadButton("Upload a picture", file_types=[".jpg", ".jpeg", ".png", ".webp"], size="sm")
                with gr.Accordion("box, by numbers", open=False):
                    sliders = [
                        gr.Slider(0, 100, value=x, step=1, label="centre from the left, %"),
                        gr.Slider(0, 100, value=y, step=1, label="centre from the top, %"),
                        gr.Slider(*(100 * end for end in BOX_SIDES), value=side, step=1, label="side, %"),
                    ]
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Look"):
                    found = gr.HTML(elem_id="found")
                with gr.Tab("Diagnose"):
                    gr.Markdown(
                        "The same questions over many drawn scenes, beside random weights: seconds to minutes."
                    )
                    ask_more = gr.Button("Diagnose this network", variant="primary")
                    verdicts, report = gr.HTML(elem_id="verdicts"), gr.File(label="every number", visible=False)
                with gr.Tab("Embed"):
                    gr.Markdown("The features themselves, of the picture and of each place in it.")
                    ask_features = gr.Button("Embed this picture", variant="primary")
                    embedded, features = gr.HTML(elem_id="embedded"), gr.File(label="features", visible=False)

        # A free machine has two cores: two visitors at once would both wait longer.
        alone: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        asked = {"inputs": [source, upload, *sliders, model, typed], "outputs": [picture, found]}
        everything: dict[str, Any] = {"fn": look, **asked, **alone}
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
        for button, call, inputs, outputs in (
            (ask_more, diagnose, [model, typed], [verdicts, report]),
            (ask_features, embed, [source, upload, model, typed], [embedded, features]),
        ):
            done = button.click(call, inputs, outputs, api_name=call.__name__, **alone)
            done.then(lambda file: gr.update(visible=file is not None), outputs[1], outputs[1], **private)
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
