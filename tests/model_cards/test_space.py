"""The Space: pictures and ids from strangers, what is found in networks whose leak is known, and the running page."""

import ast
import dataclasses
import importlib
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from markupsafe import escape
from PIL import Image
from torch import Tensor

from modeling_decodepos.batch_norms import batch_norms
from modeling_decodepos.diagnosis.measures.context import exchange_cosines
from modeling_decodepos.diagnosis.models.load import FeatureModel, load_model
from modeling_decodepos.embedding import load_features
from modeling_decodepos.looking import leaks
from modeling_decodepos.looking.found import results
from tests.dataset_scripts.sources.test_openimage_mini_photos import huge_png_header
from tests.hub_server import TOKEN, HubServer, run_python

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "model_cards" / "space"
sys.path.insert(0, str(SPACE))  # its modules lie side by side, as they do in the Space
pictures: Any = importlib.import_module("visitor_pictures")
models: Any = importlib.import_module("offered_models")
S = pictures.VIEW_PX


# ----------------------------------------------------------------------------------------------------------- pictures


def test_the_middle_square_is_seen_upright(tmp_path: Path):
    pixels = np.zeros((200, 400, 3), np.uint8)
    pixels[:, 100:300] = (255, 0, 0)
    pixels[:100, 100:300] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    view = pictures.read_view(tmp_path / "a.png")
    assert view.shape == (3, S, S) and view.dtype == torch.uint8
    assert view[:, 5, 5].tolist() == [255, 0, 0] and view[:, -5, -5].tolist() == [0, 0, 255]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    Image.fromarray(np.full((S, S), 128 << 8, np.uint16)).save(tmp_path / "deep.png")
    assert (pictures.read_view(tmp_path / "deep.png") == 128).all()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.jpg", b"<script>alert(1)</script>", "cannot be read as a picture"),
        ("cut.jpg", None, "cannot be read as a picture"),
        ("icon.gif", "GIF", "cannot be read as a picture"),
        ("large.png", huge_png_header(8000, 6000), "8000 x 6000 pixels; at most 40 million"),
        ("bomb.png", huge_png_header(60000, 60000), "cannot be read as a picture"),
        ("heavy.jpg", bytes(pictures.LARGEST_FILE + 1), "larger than 8 MB"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(tmp_path: Path, name: str, content: Any, said: str):
    if not isinstance(content, bytes):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(
            buffer, content or "JPEG"
        )
        content = buffer.getvalue() if content else buffer.getvalue()[:900]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(pictures.NotAPicture, match=said) as refused:
        pictures.read_view(tmp_path / name)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("place", [(0.5, 0.5, 0.3), (0.0, 1.0, 0.5), (0.99, 0.02, 0.9), (-3.0, 7.0, 0.0)])
def test_a_box_is_whole_and_of_an_allowed_size(place: tuple[float, float, float]):
    x1, y1, x2, y2 = pictures.place_box(*place).tolist()
    assert 0 <= x1 < x2 <= 1 + 1e-6 and 0 <= y1 < y2 <= 1 + 1e-6
    low, high = pictures.BOX_SIDES
    assert x2 - x1 == pytest.approx(y2 - y1) and low - 1e-6 <= x2 - x1 <= high + 1e-6
    assert pictures.place_box(0.4, 0.6, 0.2).tolist() == pytest.approx([0.3, 0.5, 0.5, 0.7])


def test_no_offered_scene_lends_itself_surroundings():
    data, _ = leaks._references(S)
    shown = torch.cat([data.queries.pixels, data.gallery.pixels])
    for number in range(pictures.SCENES):
        view, box = pictures.draw_scene(number)
        assert not (shown == view).flatten(1).all(1).any()
        assert (box[2:] - box[:2]).max() <= pictures.BOX_SIDES[1]


# ------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["facebook/dinov2-small", " a/b ", "Org-1/name_2.v3"])
def test_ids_of_the_hub_are_taken(name: str):
    assert models.check_id(name) == name.strip()


@pytest.mark.parametrize(
    "name",
    ["", "resnet", "/etc", "../../etc", "a/b/c", "~/b", "os:system", "timm:resnet50", "random:resnet", "a/..",
     "a/b--c", "https://x.org/y", "a/b\n", "a\\b", "./b", "file://a/b", "a/<b>", "a/b?c", "a" * 97 + "/b"],
)  # fmt: skip
def test_nothing_but_an_id_is_taken(name: str):
    if name == "a/b\n":  # blanks around an id are nobody's attack
        assert models.check_id(name) == "a/b"
        return
    with pytest.raises(models.NoSuchModel, match="expected ORGANISATION/NAME"):
        models.check_id(name)


def test_a_folder_that_looks_like_an_id_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models._untrained().module.save_pretrained(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert models.load_folder(Path("org/name"), "x").stages  # it could be
    with pytest.raises(models.NoSuchModel, match="org/name cannot be downloaded from the Hub now"):
        models.find_model(models.TYPED, "org/name")


def test_the_operators_checkpoint_is_offered_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(models.OPERATORS_MODEL, raising=False)
    assert models.choices() == [models.BEFORE, models.AFTER, models.TYPED]
    with pytest.raises(models.NoSuchModel, match="no choice"):
        models.find_model(models.OWN, "")
    models._untrained().module.save_pretrained(tmp_path / "mine")
    monkeypatch.setenv(models.OPERATORS_MODEL, str(tmp_path / "mine"))
    assert models.choices() == [models.BEFORE, models.AFTER, models.OWN, models.TYPED]
    own, fresh = models.find_model(models.OWN, ""), models.find_model(models.BEFORE, "")
    pixels = pictures.draw_scene(0)[0][None]
    assert all(torch.equal(a, b) for a, b in zip(own(pixels), fresh(pixels), strict=True))
    (tmp_path / "mine" / "model.safetensors").rename(tmp_path / "mine" / "pytorch_model.bin")
    with pytest.raises(models.NoSuchModel, match="has no model.safetensors"):
        models.find_model(models.OWN, "")


def test_a_model_that_takes_no_such_pictures_is_named_without_advice_for_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(source: str, **options: Any) -> None:
        raise ValueError(f"{source}: no feature maps at 160 or 30 pixels. Give a --size that is a multiple of 14.")

    models._untrained().module.save_pretrained(tmp_path)
    monkeypatch.setattr(models, "load_model", refuse)
    with pytest.raises(models.NoSuchModel) as refused:
        models.load_folder(tmp_path, "org/vit")
    assert str(refused.value) == "org/vit cannot be used here: org/vit: no feature maps at 160 or 30 pixels."


@pytest.mark.slow
def test_of_a_repository_only_harmless_files_of_a_known_size_are_taken(hub: HubServer, tmp_path: Path):
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    def add(name: str, model: Any = None, drop: str = "", **config: Any) -> None:
        folder = tmp_path / name
        (model or models._untrained().module).save_pretrained(folder)
        written = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(written))
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
        (folder / "modeling_evil.py").write_text("raise SystemExit(3)")
        if drop:
            (folder / drop).unlink()
        hub.add_repo(f"org/{name}", folder)

    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 16}
    add("good")
    add("vit", ViTModel(ViTConfig(**small, image_size=32, patch_size=8)))
    add("pickle", drop="model.safetensors")
    add("code", auto_map={"AutoModel": "modeling_evil.Evil"}, model_type="evil")
    add("wide", hidden_sizes=[32, 64, 60_000])
    add("deep", depths=[1, 1, 10**9])
    add("lying", hidden_sizes=[32, 64, 512])
    add("text", BertModel(BertConfig(**small, vocab_size=50)))
    code = f"""
import json, sys
sys.path[:0] = {[str(SPACE), str(ROOT)]!r}
import offered_models as models
def ask(name):
    try:
        return list(models.find_model(models.TYPED, "org/" + name).stages)
    except models.NoSuchModel as error:
        return str(error)
said = {{name: ask(name) for name in ("good", "vit", "pickle", "code", "wide", "deep", "lying", "text", "none")}}
models.LARGEST_WEIGHTS = 2**20
said["heavy"] = ask("good")
print(json.dumps(said))
"""
    said = json.loads(run_python(code, hub.env(tmp_path / "home", token=None)).splitlines()[-1])
    assert said["good"] == ["stage1", "stage2", "stage3"] and len(said["vit"]) == 2
    for name, part in {
        "pickle": "Only weights in safetensors", "code": "code of its own, which this page never runs",
        "wide": "million weights, too many", "deep": "more than 64 layers", "lying": "cannot be used here",
        "text": "takes input_ids", "none": "There is no model org/none", "heavy": "at most 1 MB",
    }.items():  # fmt: skip
        assert part in said[name], name
        assert str(tmp_path) not in said[name]
    fetched = {line.path.rsplit("/", 1)[1] for line in hub.log if "/resolve/" in line.path}
    assert fetched <= set(models.FILES)


def test_before_and_after_are_one_network_with_other_weights():
    before, after = models.find_model(models.BEFORE, ""), models.find_model(models.AFTER, "")
    assert before.stages == after.stages and type(before.module) is type(after.module)
    released = load_model(str(ROOT / "model_cards" / "weights" / "decodepos-scenes-mini"), size_px=S, reading="known")
    pixels = pictures.photo_view()[0][None]
    assert all(torch.equal(a, b) for a, b in zip(after(pixels), released(pixels), strict=True))
    norms = batch_norms(before.module)
    fresh = batch_norms(load_model(f"random:{models.WEIGHTS}", size_px=S).module)
    assert norms and all(int(norm.num_batches_tracked) == 4 and not norm.training for norm in norms)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(norms, fresh, strict=True))
    assert not any(torch.equal(a.running_mean, b.running_mean) for a, b in zip(norms, fresh, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("stored", [False, True], ids=["environment", "stored"])
def test_a_token_of_the_operators_reaches_no_request(hub: HubServer, tmp_path: Path, stored: bool):
    models._untrained().module.save_pretrained(tmp_path / "net")
    hub.add_repo("org/open", tmp_path / "net")
    hub.add_repo("org/secret", tmp_path / "net", private=True)
    env = hub.env(tmp_path / "home", token=None if stored else TOKEN)
    if stored:
        (tmp_path / "home" / "token").write_text(TOKEN)
    space = tmp_path / "space"  # as its README uploads it
    shutil.copytree(SPACE, space)
    shutil.copytree(ROOT / "model_cards" / "weights" / "decodepos-scenes-mini", space / "weights")
    (space / "modeling_decodepos").symlink_to(ROOT / "modeling_decodepos")
    code = f"""
import sys
sys.path.insert(0, {str(space)!r})
import offered_models as models
from huggingface_hub import get_token
assert get_token() == {TOKEN!r}
assert models.find_model(models.AFTER, "").stages and str(models.WEIGHTS).startswith({str(tmp_path)!r})
print(len(models.find_model(models.TYPED, "org/open").stages))
try:
    models.find_model(models.TYPED, "org/secret")
except models.NoSuchModel as error:
    print(error)
"""
    stages, refused = run_python(code, env).splitlines()[-2:]
    assert stages == "3" and "There is no model org/secret on the Hub, or it is private" in refused
    assert hub.log and not [line.path for line in hub.log if TOKEN in line.headers]


# -------------------------------------------------------------------------------------------------------------- views


def patches(images: Tensor) -> list[Tensor]:
    """Sees nothing but its own 16 x 16 pixels."""
    return [F.pixel_unshuffle(F.avg_pool2d(images, 4), 4)]


def everything(images: Tensor) -> list[Tensor]:
    """Sees all of the picture from everywhere, and nothing of the place."""
    return [F.adaptive_avg_pool2d(images, 4).flatten(1)[:, :, None, None].expand(-1, -1, 10, 10)]


def place(images: Tensor) -> list[Tensor]:
    """Says where it is, and a little of the picture."""
    steps = torch.linspace(-1, 1, 10)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"))[None].expand(len(images), -1, -1, -1)
    return [torch.cat([grid, 1e-3 * F.adaptive_avg_pool2d(images, 10)], 1)]


def found_by(maps: Any) -> tuple[Any, Any]:
    view, _ = pictures.draw_scene(1)
    common = leaks.ask_common(FeatureModel("known", ("map",), maps, S), S)
    return common, leaks.ask(common, view, torch.tensor([0.2, 0.3, 0.5, 0.7]))  # whole cells of 16 pixels


def test_networks_whose_leaks_are_known():
    common, found = found_by(patches)
    assert found.outside[0] < 0.02 and found.leak[0] < 0.3  # pooling reads half a cell beyond the box
    assert found.same_content.min() > 0.99 and common.position[0].value == 0

    common, found = found_by(everything)
    assert found.outside[0] == pytest.approx(1 - 0.3 * 0.4, abs=0.1)
    assert found.leak[0] > 0.6 and common.position[0].value == 0

    common, found = found_by(place)
    assert common.position[0].value > 0.99


def test_the_region_is_compared_as_one_more_among_the_references():
    common = leaks.ask_common(models._untrained(), S)
    view, box = pictures.draw_scene(2)
    found = leaks.ask(common, view, box)
    assert found.same_content.shape == (3, leaks.DONORS)

    def feature(picture: Tensor) -> Tensor:
        return leaks.read_features(common.model, picture[None], [box[None]])[-1].regions

    k = 2
    rows = [
        torch.cat([feature(picture), others[-1]])
        for picture, others in (
            (view, common.regions),
            (found.recontextualised[k], common.surroundings),
            (found.refilled[k], common.content),
        )
    ]
    content, surroundings = exchange_cosines(*rows)
    assert found.same_content[-1, k] == pytest.approx(float(content[0]), abs=1e-4)
    assert found.same_surroundings[-1, k] == pytest.approx(float(surroundings[0]), abs=1e-4)
    assert found.outside == sorted(set(found.outside))  # receptive fields grow with depth


def test_a_network_no_gradient_passes_is_shown_without():
    common, found = found_by(lambda images: [patches(images)[0].detach()])
    assert found.outside == [None]
    assert "map: –" in results(common, found, *pictures.draw_scene(1))  # noqa: RUF001


# --------------------------------------------------------------------------------------------------------------- page


def test_nothing_a_stranger_wrote_becomes_markup():
    evil = '<img src=x onerror="alert(1)">'
    common, found = found_by(patches)
    common = dataclasses.replace(common, model=dataclasses.replace(common.model, name=evil, note=evil, stages=(evil,)))
    text = results(common, found, *pictures.draw_scene(1))
    assert evil not in text and text.count(escape(evil)) >= 4
    assert set(re.findall(r"<(\w+)", text)) <= {
        "div", "p", "b", "h3", "figure", "img", "figcaption", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert not re.search(r'src="(?!data:image/(png|jpeg);base64,)', text)


def test_its_requirements_are_the_librarys_and_it_belongs_to_no_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = (SPACE / "requirements.txt").read_text().splitlines()
    assert set(project["dependencies"]) <= set(wanted)
    assert "gradio" not in str(project["optional-dependencies"])
    head = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    assert f"gradio=={head['sdk_version']}" in wanted and (SPACE / head["app_file"]).is_file()
    assert len(head["short_description"]) <= 60  # the Hub refuses more
    for path in SPACE.glob("*.py"):  # only what is uploaded can be imported there
        names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not {
            name for name in names if name and name.split(".")[0] in ("model_cards", "training", "dataset_scripts")
        }


# ------------------------------------------------------------------------------------------------------------ running


class Visitor:
    """Somebody who talks to the running page over HTTP, as its own script does."""

    def __init__(self, url: str, hub: HubServer) -> None:
        self.url, self.hub = url, hub

    def read(self, path: str, body: bytes | None = None, kind: str = "application/json") -> str:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read().decode()

    def upload(self, content: bytes, name: str) -> str:
        line = b"--b\r\nContent-Disposition: form-data; name=files; filename=" + name.encode() + b"\r\n\r\n"
        return json.loads(
            self.read("/gradio_api/upload", line + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")
        )[0]

    def call(self, name: str, *values: Any) -> Any:
        """What a function of the page gives; None if it fails."""
        event = json.loads(self.read(f"/gradio_api/call/{name}", json.dumps({"data": values}).encode()))["event_id"]
        said = self.read(f"/gradio_api/call/{name}/{event}")
        kind, content = re.findall(r"event: (complete|error)\ndata: (.*)\n", said)[0]
        return json.loads(content) if kind == "complete" else None

    def look(self, source: str, path: str | None, model: str, typed: str = "") -> Any:
        file = None if path is None else {"path": path, "meta": {"_type": "gradio.FileData"}}
        found = self.call("look", source, file, 50, 50, 40, model, typed)
        return found and found[1]

    def fetch(self, file: dict[str, str]) -> bytes:
        with urllib.request.urlopen(file["url"], timeout=120) as answer:
            return answer.read()


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("space")
    models._untrained().module.save_pretrained(folder / "net")
    server = HubServer()
    server.add_repo("org/open", folder / "net")
    server.add_repo("org/secret", folder / "net", private=True)
    env = server.env(folder / "home", token=TOKEN) | {
        "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False",
    }  # fmt: skip
    with server, (folder / "log").open("w") as log:
        running = subprocess.Popen([sys.executable, "app.py"], cwd=SPACE, env=env, stdout=log, stderr=log)
        try:
            yield _answering(running, Visitor(f"http://127.0.0.1:{port}", server), folder / "log")
        finally:
            running.terminate()
            running.wait(30)


def _answering(running: subprocess.Popen, someone: Visitor, log: Path) -> Visitor:
    for _ in range(240):
        assert running.poll() is None, log.read_text()
        try:
            someone.read("/config")
            break
        except OSError:
            time.sleep(0.5)
    return someone


def jpeg(side: int = 120) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.slow
def test_the_running_page_answers_and_refuses(visitor: Visitor):
    drawn = visitor.look("scene 1", None, models.AFTER)
    assert "Context leak" in drawn and drawn.count("<img") >= 17
    own = visitor.look("my picture", visitor.upload(jpeg(), "a.jpg"), models.AFTER)
    assert "Context leak" in own and own != drawn
    assert "cannot be read as a picture" in visitor.look(
        "my picture", visitor.upload(b"<svg/>", "a.jpg"), models.BEFORE
    )
    assert "Upload a picture first" in visitor.look("my picture", None, models.BEFORE)
    assert "expected ORGANISATION/NAME" in visitor.look("scene 1", None, models.TYPED, "os:system")
    assert "&lt;b&gt;" in visitor.look("scene 1", None, models.TYPED, "<b>")
    assert "There is no model model_cards/space" in visitor.look("scene 1", None, models.TYPED, "model_cards/space")
    assert (
        visitor.look("my picture", str(ROOT / "docs" / "views.png"), models.BEFORE) is None
    )  # no file of the machine
    assert visitor.look("scene 1", None, "module:function") is None
    with pytest.raises(urllib.error.HTTPError, match="413"):
        visitor.upload(bytes(pictures.LARGEST_FILE + 1), "a.jpg")


@pytest.mark.slow
def test_the_running_page_asks_the_hub_as_anybody_would(visitor: Visitor):
    assert "org/open" in visitor.look("photo", None, models.TYPED, "org/open")
    assert "There is no model org/secret" in visitor.look("photo", None, models.TYPED, "org/secret")
    assert any("/org/secret" in line.path for line in visitor.hub.log)
    assert not [line.path for line in visitor.hub.log if TOKEN in line.headers]  # which is in its environment


@pytest.mark.slow
def test_the_running_page_switches_diagnoses_and_embeds(visitor: Visitor, tmp_path: Path):
    before, after = (visitor.look("photo", None, choice) for choice in (models.BEFORE, models.AFTER))
    assert "trained on scenes" in after and "untrained, batch norms fitted" in before
    verdicts, report = visitor.call("diagnose", models.AFTER, "")
    assert "Context leak" in verdicts and b"Context leak" in visitor.fetch(report)
    said, features = visitor.call("embed", "photo", None, models.AFTER, "")
    (tmp_path / "features.safetensors").write_bytes(visitor.fetch(features))
    table = load_features(tmp_path / "features.safetensors", "patches")
    assert "26 features" in said and table.feature.shape == (25, 256) and table.box.shape == (25, 4)
    refused, nothing = visitor.call("diagnose", models.TYPED, "os:system")
    assert "expected ORGANISATION/NAME" in refused and nothing is None
