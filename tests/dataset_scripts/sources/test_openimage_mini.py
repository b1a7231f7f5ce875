import dataclasses
import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from dataset_scripts.build.parquet import load_manifest
from dataset_scripts.check import check_dataset
from dataset_scripts.hub.release import card_problems
from dataset_scripts.prepare import main
from dataset_scripts.sources.openimage_mini import builder as openimage_mini
from tests.dataset_scripts.sources import test_openimage_mini_selection as by_hand
from tests.dataset_scripts.sources.test_openimage_mini_photos import huge_png_header
from tests.image_server import ImageServer
from tests.real_data import OPENIMAGES_SAMPLE as SAMPLE

ROOT = Path(__file__).parents[3]
BOX_HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
LIST_HEADER = "ImageID,OriginalURL,OriginalLandingURL,License,Author,OriginalSize,OriginalMD5,Rotation"
MASK_HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
LABELS = {"/m/a": "Ant", "/m/b": "Bee", "/m/c": "Cat"}
TRAIN, VALIDATION = [f"{k:016x}" for k in range(1, 13)], [f"{k:016x}" for k in range(100, 104)]
RULE = ("--small-images=4", "--least-train-boxes=1", "--least-validation-boxes=1", "--cap-step=2")


def photo(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).resize((48, 32)).save(buffer, "JPEG")
    return buffer.getvalue()


def box_rows(ids: list[str]) -> list[str]:
    labels = list(LABELS)
    rows = []
    for k, image_id in enumerate(ids):
        for j in range(2 + k % 2):
            x, y = 0.0625 * (k % 5), 0.125 * j
            rows.append(f"{image_id},xclick,{labels[(k + j) % 3]},1,{x},{x + 0.5},{y},{y + 0.25},0,0,0,0,0")
    return rows


def lines(path: Path, header: str, rows: list[str]) -> None:
    path.write_text("\n".join([header, *rows]) + "\n")


def write_tables(folder: Path, shuffled: int | None = None) -> Path:
    """A small Open Images: 12 training photos, 4 for validation, boxes, attribution."""
    folder.mkdir(parents=True)
    rng = random.Random(shuffled)

    def mixed(rows: list[str]) -> list[str]:
        return rows if shuffled is None else rng.sample(rows, len(rows))

    classes = mixed([f"{label},{name}" for label, name in LABELS.items()])
    (folder / "class-descriptions-boxable.csv").write_text("\n".join(classes) + "\n")
    for split, ids in (("train", TRAIN), ("validation", VALIDATION)):
        lines(folder / f"{split}-annotations-bbox.csv", BOX_HEADER, mixed(box_rows(ids)))
        listed = [f"{i},https://f/{i},https://l/{i},https://cc/by,Author {i[-2:]},1,x,90.0" for i in ids]
        name = "train-images-boxable-with-rotation.csv" if split == "train" else "validation-images-with-rotation.csv"
        lines(folder / name, LIST_HEADER, mixed(listed))
    return folder


@pytest.fixture
def server():
    files = {f"/train/{i}.jpg": photo(int(i, 16)) for i in TRAIN}
    files |= {f"/validation/{i}.jpg": photo(int(i, 16)) for i in VALIDATION}
    with ImageServer(files) as server:
        yield server


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """The same builds with shorter pauses."""
    real = openimage_mini.Downloader

    def impatient(pace):
        return real(pace, attempts=4, timeout_s=20, backoff_s=0.01)

    monkeypatch.setattr(openimage_mini, "Downloader", impatient)


def command(server, source: Path, output: Path, *more: str) -> list[str]:
    return [
        "openimage-mini", "--source", str(source), "--output", str(output), "--image-url", server.url,
        "--metadata-url", f"{server.url}/openimages", "--requests-per-second", "1000", "--workers", "1", *more,
    ]  # fmt: skip


def build(server, source: Path, output: Path, *more: str, rule=RULE) -> str:
    assert main(command(server, source, output, *rule, *more)) == 0
    assert check_dataset(output) == []
    return load_manifest(output)["data_sha256"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path, split: str) -> list[dict]:
    return [row for path in sorted((folder / "data").glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def test_the_bytes_are_the_same_from_shuffled_tables_other_workers_and_a_bad_connection(server, tmp_path):
    first = build(server, write_tables(tmp_path / "a"), tmp_path / "one")
    for k, path in enumerate(sorted(server.files)):
        server.faults[path] = [["503"], ["cut", "drop"], ["html"], ["retry:0"], []][k % 5]
    again = build(server, write_tables(tmp_path / "b", shuffled=5), tmp_path / "four", "--workers", "4")
    assert first == again
    assert contents(tmp_path / "one") == contents(tmp_path / "four")


def test_rows_hold_what_the_tables_say(server, tmp_path):
    build(server, write_tables(tmp_path / "source"), tmp_path / "mini")
    rows = {row["image_id"]: row for row in rows_of(tmp_path / "mini", "train")}
    assert sorted(rows) == TRAIN
    row = rows[TRAIN[1]]  # the second: three boxes, from its x 0.0625 and width 0.5 on 48 x 32 pixels
    assert (row["width"], row["height"]) == (48, 32)
    assert row["image"]["bytes"] == photo(2)
    boxes = {
        (category, *bbox) for category, bbox in zip(row["objects"]["category"], row["objects"]["bbox"], strict=True)
    }
    assert boxes == {(1, 3, 0, 24, 8), (2, 3, 4, 24, 8), (0, 3, 8, 24, 8)}
    assert row["objects"]["area"] == [192.0] * 3
    assert row["segmentation"] is None
    assert (row["license"], row["author"]) == ("https://cc/by", "Author 02")
    assert row["original_url"] == f"https://f/{TRAIN[1]}" and row["landing_url"] == f"https://l/{TRAIN[1]}"
    assert load_manifest(tmp_path / "mini")["class_names"] == ["Ant", "Bee", "Cat"]
    card = (tmp_path / "mini" / "README.md").read_text()
    for part in ("our reconstruction", "never released its list", "CC BY 2.0", "TAKEDOWN-CONTACT", "16 of the photos"):
        assert part in card
    for title in (
        "Composition",
        "Selection",
        "Biases and use",
        "Licences and attribution",
        "Classes",
        "What was read",
    ):
        assert f"\n## {title}\n" in card
    assert "The paper's: the name" in card and "Ours: the rule below" in card
    per_photo = sorted(len(row["objects"]["bbox"]) for row in rows.values())
    authors = {row["author"] for row in rows.values()}
    spread = f"{per_photo[0]}, {np.median(per_photo):g}, {per_photo[-1]}"
    assert f"| train | {len(rows)} | {sum(per_photo)} | {spread} | {len(authors)} | 0 |" in card
    assert card_problems(card) == [
        f"line {number} still says TAKEDOWN-CONTACT"
        for number, line in enumerate(card.splitlines(), start=1)
        if "TAKEDOWN-CONTACT" in line
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_both_tiers_load_and_the_small_one_is_a_prefix(server, tmp_path, streaming, monkeypatch):
    build(server, write_tables(tmp_path / "source"), tmp_path / "openimage-mini")
    monkeypatch.chdir(tmp_path)
    ids = {}
    for name in (None, "small"):
        dataset = load_dataset("openimage-mini", name, streaming=streaming, cache_dir=str(tmp_path / "cache"))
        ids[name] = {split: [row["image_id"] for row in rows] for split, rows in dataset.items()}
    assert sorted(ids[None]["train"]) == TRAIN
    assert ids["small"]["train"] == ids[None]["train"][:4]
    assert ids["small"]["validation"] == ids[None]["validation"]
    assert dataset["train"].features["objects"]["category"].feature.names == ["Ant", "Bee", "Cat"]


def test_gone_photos_are_listed_and_the_list_reproduces_the_build(server, tmp_path):
    gone = [TRAIN[2], VALIDATION[0]]
    for split, image_id in zip(("train", "validation"), gone, strict=True):
        server.faults[f"/{split}/{image_id}.jpg"] = ["404!"]
    source, output = write_tables(tmp_path / "source"), tmp_path / "mini"
    first = build(server, source, output)
    assert (output / "missing_ids.txt").read_text().split() == gone
    manifest = load_manifest(output)
    text = "".join(f"{image_id}\n" for image_id in gone)
    assert manifest["recipe"]["missing_ids_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert manifest["splits"] == {"train": 11, "validation": 3}
    server.faults.clear()  # they come back
    other = write_tables(tmp_path / "other")
    assert build(server, other, tmp_path / "again", "--missing", str(output / "missing_ids.txt")) == first
    assert build(server, other, tmp_path / "whole") != first
    server.faults[f"/train/{TRAIN[5]}.jpg"] = ["410!"]
    new = command(server, write_tables(tmp_path / "third"), tmp_path / "no", *RULE, "--missing")
    assert main([*new, str(output / "missing_ids.txt")]) == 2


def test_a_server_error_leaves_the_build_incomplete_and_the_same_command_ends_it(server, tmp_path, capsys):
    source, output = write_tables(tmp_path / "source"), tmp_path / "mini"
    server.faults[f"/train/{TRAIN[3]}.jpg"] = ["500!"]
    assert main(command(server, source, output, *RULE)) == 2
    assert "1 of 16 photos could not be fetched" in (message := capsys.readouterr().err)
    assert "HTTP 500" in message and "run the same command again" in message
    assert sorted(path.name for path in output.iterdir()) == [".work"]
    server.faults.clear()
    before = dict(server.requests)
    build(server, source, output)
    asked = {path for path, count in server.requests.items() if count != before.get(path)}
    assert {path for path in asked if path.endswith(".jpg")} == {f"/train/{TRAIN[3]}.jpg"}


def test_a_local_folder_of_photos_needs_no_server(server, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path, content in server.files.items():
        (photos / Path(path).name).write_bytes(content)
    build(server, write_tables(tmp_path / "source"), tmp_path / "mini", "--images", str(photos))
    assert all(path.startswith("/openimages") for path in server.requests)
    (photos / f"{TRAIN[0]}.jpg").write_bytes(photo(1)[:-100])
    again = command(server, tmp_path / "source", tmp_path / "again", *RULE, "--images", str(photos))
    assert main(again) == 1
    assert re.search(f"{TRAIN[0]}.jpg: .*cannot be decoded .*truncated.*Delete it", capsys.readouterr().err)


def test_ids_only_is_small_loads_and_builds_the_same(server, tmp_path, capsys):
    source, ids = write_tables(tmp_path / "source"), tmp_path / "ids"
    assert main(command(server, source, ids, *RULE, "--ids-only")) == 0
    assert not any(path.endswith(".jpg") for path in server.requests)
    for name, count in (("default", 12), ("small", 4)):
        dataset = load_dataset(str(ids), name, cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in dataset.items()} == {"train": count, "validation": 4}
    assert dataset["train"].features["categories"].feature.names == ["Ant", "Bee", "Cat"]
    direct = build(server, source, tmp_path / "direct")
    assert build(server, ids, tmp_path / "from-ids", rule=()) == direct
    assert contents(tmp_path / "from-ids") == contents(tmp_path / "direct")
    assert main(command(server, ids, tmp_path / "x", *RULE)) == 2
    assert "cannot change them" in capsys.readouterr().err
    index = json.loads((ids / "index.json").read_text())
    (ids / "index.json").write_text(json.dumps(index | {"small": 5}))
    assert main(command(server, ids, tmp_path / "x")) == 2
    assert "was edited" in capsys.readouterr().err


def test_ids_do_not_overwrite_something_else(server, tmp_path, capsys):
    source, ids = write_tables(tmp_path / "source"), tmp_path / "ids"
    ids.mkdir()
    (ids / "thesis.txt").write_text("years of work")
    assert main(command(server, source, ids, *RULE, "--ids-only", "--overwrite")) == 2
    assert contents(ids) == {"thesis.txt": b"years of work"}
    assert "has no index.json" in capsys.readouterr().err


def test_tables_are_fetched_and_optional_ones_may_be_absent(server, tmp_path):
    complete = write_tables(tmp_path / "complete")
    for name, table in openimage_mini.TABLES.items():
        for file in table.names:
            if name != "train images" and (complete / file).is_file():
                server.files[f"/openimages/{table.address}"] = (complete / file).read_bytes()
    (tmp_path / "empty").mkdir()
    build(server, tmp_path / "empty", tmp_path / "mini")
    absent = load_manifest(tmp_path / "mini")["recipe"]["absent_tables"]
    assert absent == ["hierarchy", "mask classes", "train images", "train masks", "validation masks"]
    assert rows_of(tmp_path / "mini", "train")[0]["author"] is None
    assert rows_of(tmp_path / "mini", "validation")[0]["author"] is not None


def test_a_table_that_cannot_be_had_is_named(server, tmp_path, capsys):
    source = write_tables(tmp_path / "source")
    (source / "train-annotations-bbox.csv").unlink()
    assert main(command(server, source, tmp_path / "mini", *RULE)) == 2
    assert (
        "train boxes: oidv6-train-annotations-bbox.csv or train-annotations-bbox.csv, gone" in capsys.readouterr().err
    )
    source = write_tables(tmp_path / "other")
    server.faults["/openimages/2018_04/bbox_labels_600_hierarchy.json"] = ["503!"]
    assert main(command(server, source, tmp_path / "mini", *RULE)) == 2
    assert "say --without hierarchy" in capsys.readouterr().err
    build(server, source, tmp_path / "mini", "--without", "hierarchy")


def test_all_tables_that_cannot_be_had_are_named_in_one_go(server, tmp_path):
    source, output = write_tables(tmp_path / "source"), tmp_path / "mini"
    for name in ("class-descriptions-boxable.csv", "validation-annotations-bbox.csv"):
        (source / name).unlink()
    (source / "oidv6-train-annotations-bbox.csv").write_text("another one")
    (source / "validation-images-with-rotation.csv").unlink()
    tables = openimage_mini.TABLES
    there = f"/openimages/{tables['validation images'].address}"
    server.files[there] = b"x" * 50_000_000  # it can be had, and is not fetched for a build that will not be
    hierarchy = f"/openimages/{tables['hierarchy'].address}"
    server.faults[hierarchy] = ["503!"]
    arguments = command(server, source, output, *RULE)
    ended = subprocess.run(
        [sys.executable, "-m", "dataset_scripts.prepare", *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 2
    first, *named = ended.stderr.strip().splitlines()
    assert first.startswith("error: 4 tables of Open Images cannot be had.") and str(source) in first
    assert [line.strip().partition(":")[0] for line in named] == [
        "classes", "train boxes", "validation boxes", "hierarchy",
    ]  # fmt: skip
    assert "class-descriptions-boxable.csv or oidv7-class-descriptions-boxable.csv, gone from http" in named[0]
    assert "are both there: remove one of them" in named[1]
    assert "say --without hierarchy: classes that contain other classes may be chosen" in named[3]
    assert server.requests[hierarchy] == server.requests[there] == 1
    assert not list(output.rglob("*images-with-rotation*"))


def test_the_docs_name_every_table():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for table in openimage_mini.TABLES.values():
        assert f"`{table.address}`" in text and all(name in text for name in table.names)
        assert not table.group or openimage_mini.LOST[table.group] in text


def test_the_rule_comes_from_flags_and_from_a_recipe(server, tmp_path, capsys):
    source, recipe = write_tables(tmp_path / "source"), tmp_path / "rule.yaml"
    recipe.write_text("train_images: 6\nsmall_images: 3\nleast_train_boxes: 1\nleast_validation_boxes: 1\n")
    build(server, source, tmp_path / "mini", "--recipe", str(recipe), "--small-images", "2", rule=())
    rule = load_manifest(tmp_path / "mini")["recipe"]["rule"]
    assert (rule["train_images"], rule["small_images"], rule["cap_step"]) == (6, 2, 20)
    recipe.write_text("train_image: 6\n")
    assert main(command(server, source, tmp_path / "x", "--recipe", str(recipe))) == 2
    assert "unknown key 'train_image'. Did you mean 'train_images'" in capsys.readouterr().err


def boxes_as_csv(rows: list[tuple], unusable: list[str]) -> list[str]:
    label = ["/m/ant", "/m/bee", "/m/cat", "/m/dog"]
    good = [f"{n:016x},xclick,{label[c]},1,{a},{x},{b},{y},0,0,0,0,0" for n, c, a, b, x, y in rows]
    return [*good, *good[3:9], *unusable]


def test_the_ids_that_were_worked_out_by_hand_from_csv_to_index(server, tmp_path):
    """The boxes of `test_openimage_mini_selection`, among repeated, flagged and impossible ones."""
    unusable = [
        f"{6:016x},xclick,/m/bee,1,0.1,0.5,0.1,0.5,0,0,1,0,0",  # a group: 6 still shows one class
        f"{6:016x},xclick,/m/bee,1,0.1,0.5,0.1,0.5,0,0,0,1,0",
        f"{6:016x},xclick,/m/bee,1,0.1,0.5,0.1,0.5,0,0,0,0,1",
        f"{6:016x},xclick,/m/bee,1,0.5,0.1,0.1,0.5,0,0,0,0,0",
        f"{6:016x},xclick,/m/unheard,1,0.1,0.5,0.1,0.5,0,0,0,0,0",
    ]
    for seed in (0, 1):
        source, ids = tmp_path / f"source-{seed}", tmp_path / f"ids-{seed}"
        source.mkdir()
        rng = random.Random(seed)
        for split, rows in (("train", boxes_as_csv(by_hand.TRAIN, unusable)), ("validation", by_hand.VALIDATION)):
            texts = rows if split == "train" else boxes_as_csv(rows, [])
            lines(source / f"{split}-annotations-bbox.csv", BOX_HEADER, rng.sample(texts, len(texts)))
        names = ["/m/ant,ant", "/m/bee,bee", "/m/cat,cat", "/m/dog,dog"]
        (source / "class-descriptions-boxable.csv").write_text("\n".join(rng.sample(names, 4)))
        values = dataclasses.asdict(by_hand.SMALL).items()
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in values if name != "hand_drawn"]
        assert main(command(server, source, ids, *flags, "--ids-only")) == 0
    tables = {path.stem: pq.read_table(path).to_pylist() for path in (ids / "data").iterdir()}
    found = {name: [row["image_id"] for row in rows] for name, rows in tables.items()}
    assert found == {
        "train-small": ["0000000000000009", "0000000000000005"],
        "train-rest": ["0000000000000003", "0000000000000002", "0000000000000004"],
        "validation": ["000000000000000b", "000000000000000a"],
    }
    assert tables["train-rest"][2]["categories"] == [0, 2]
    counts = json.loads((ids / "index.json").read_text())["counts"]["train boxes"]
    assert counts["duplicate"] == 6 + 2  # of images 6 and 9, which show a box twice
    assert contents(tmp_path / "ids-0") == contents(ids)


# ------------------------------------------------------------------------------------------------------------- masks


def png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def write_masks(source: Path, zipped: bool) -> None:
    """The first training photo gets a large ant on its left half and a small bee in a corner, at half size."""
    ant, bee = np.zeros((16, 24), bool), np.zeros((32, 48), bool)
    ant[:, :12], bee[:8, :8] = True, True
    masks = {f"{TRAIN[0]}_ma_0a.png": png(ant), f"{TRAIN[0]}_mb_0b.png": png(bee)}
    rows = [
        f"{TRAIN[0]}_mb_0b.png,{TRAIN[0]},/m/b,0b,0,0.2,0,0.25,0.9,",
        f"{TRAIN[0]}_ma_0a.png,{TRAIN[0]},/m/a,0a,0,0.5,0,1,0.9,",
        f"{TRAIN[1]}_mz_0c.png,{TRAIN[1]},/m/zzz,0c,0,0.5,0,1,0.9,",
    ]
    lines(source / "train-annotations-object-segmentation.csv", MASK_HEADER, rows)
    lines(source / "validation-annotations-object-segmentation.csv", MASK_HEADER, [])
    folder = source / "masks"
    folder.mkdir()
    if not zipped:
        (folder / "train").mkdir()
        for name, content in masks.items():
            (folder / "train" / name).write_bytes(content)
        return
    with zipfile.ZipFile(folder / "train-masks-0.zip", "w") as archive:
        archive.writestr("../../../escaped.png", b"out")
        archive.writestr("/absolute.png", b"out")
        for name, content in masks.items():
            archive.writestr(f"../../{name}", content)  # would leave the folder if it were extracted


@pytest.mark.parametrize("zipped", [False, True])
def test_masks_become_one_map(server, tmp_path, zipped):
    source = write_tables(tmp_path / "deep" / "er" / "source")
    write_masks(source, zipped)
    build(server, source, tmp_path / "mini")
    rows = {row["image_id"]: row for row in rows_of(tmp_path / "mini", "train")}
    labels = np.asarray(Image.open(io.BytesIO(rows[TRAIN[0]]["segmentation"]["bytes"])))
    expected = np.full((32, 48), 255)
    expected[:, :24], expected[:8, :8] = 1, 2
    np.testing.assert_array_equal(labels, expected)
    assert rows[TRAIN[1]]["segmentation"] is None
    assert load_manifest(tmp_path / "mini")["recipe"]["masks"] is True
    escaped = {path.name for path in tmp_path.rglob("*.png")} - {f"{TRAIN[0]}_ma_0a.png", f"{TRAIN[0]}_mb_0b.png"}
    assert not escaped
    outside = [path for path in tmp_path.rglob(f"{TRAIN[0]}*.png") if source not in path.parents]
    assert not outside


def test_masks_give_the_same_bytes_from_zips_folders_and_ids(server, tmp_path):
    sources = []
    for zipped in (False, True):
        sources.append(write_tables(tmp_path / f"source-{zipped}"))
        write_masks(sources[-1], zipped)
    first = build(server, sources[0], tmp_path / "folders")
    assert build(server, sources[1], tmp_path / "zips") == first
    ids = tmp_path / "ids"
    assert main(command(server, sources[0], ids, *RULE, "--ids-only")) == 0
    assert build(server, ids, tmp_path / "from-ids", "--masks", str(sources[1] / "masks"), rule=()) == first
    assert build(server, ids, tmp_path / "plain", rule=()) != first


def test_masks_that_are_missing_broken_or_huge_are_named(server, tmp_path, capsys):
    source = write_tables(tmp_path / "source")
    write_masks(source, zipped=False)
    name = f"{TRAIN[0]}_ma_0a.png"
    path = source / "masks" / "train" / name
    good = path.read_bytes()
    for content, message, code in (
        (None, f"1 of 2 masks are not there, such as {name}", 2),
        (good[:46], f"{name} cannot be decoded", 1),  # known when its row is made
        (b"no picture", f"{name} cannot be decoded (header): no known kind of picture", 2),
        (huge_png_header(60_000, 40_000), f"{name} cannot be decoded (header): DecompressionBomb", 2),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        assert main(command(server, source, tmp_path / "mini", *RULE)) == code
        assert message in capsys.readouterr().err
    path.unlink()
    (source / "masks" / "train-masks-0.zip").write_bytes(b"PK cut off")
    assert main(command(server, source, tmp_path / "mini", *RULE)) == 2
    assert "no whole zip" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- a killed build


def start(server, source: Path, output: Path, *more: str) -> subprocess.Popen:
    arguments = command(server, source, output, *RULE, *more)
    return subprocess.Popen(
        [sys.executable, "-m", "dataset_scripts.prepare", *arguments], cwd=ROOT, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_killed_fetch_goes_on_and_gives_the_same_hash(server, tmp_path):
    expected = build(server, write_tables(tmp_path / "a"), tmp_path / "whole")
    source, output = write_tables(tmp_path / "b"), tmp_path / "killed"
    stuck = [f"/train/{image_id}.jpg" for image_id in TRAIN[6:]]
    for path in stuck:
        server.faults[path] = ["drip!"]
    server.requests.clear()
    process = start(server, source, output, "--connections", "2")
    wait_until(lambda: sum(server.requests[path] for path in stuck) >= 2 and any(output.rglob("*.jpg")))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert [path.name for path in output.iterdir()] == [".work"]
    kept = {path.name: path.read_bytes() for path in output.rglob("*.jpg") if path.name[0] != "."}
    assert kept and all(content in server.files.values() for content in kept.values())
    server.faults.clear()
    server.requests.clear()
    assert build(server, source, output) == expected
    assert not {path for path in server.requests if Path(path).name in kept}
    assert not (output / ".work").exists()


def test_a_source_is_only_read_and_nothing_is_left_over(server, tmp_path):
    """Masks in a zip, photos and a table that are fetched: all that once was written into the source."""
    source, downloads = write_tables(tmp_path / "source"), tmp_path / "kept"
    table = source / "validation-annotations-bbox.csv"
    server.files["/openimages/v5/validation-annotations-bbox.csv"] = table.read_bytes()
    table.unlink()
    before = contents(source)
    first = build(server, source, tmp_path / "mini")
    assert build(server, source, tmp_path / "again", "--downloads", str(downloads)) == first
    server.requests.clear()
    assert build(server, source, tmp_path / "third", "--downloads", str(downloads)) == first
    assert not [path for path in server.requests if path.endswith((".jpg", "bbox.csv"))]
    assert main(command(server, source, tmp_path / "ids", *RULE, "--ids-only")) == 0
    assert contents(source) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "ids", "kept", "mini", "source", "third"]
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]


def wait_until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------ real material

ONE = ("--train-images=30", "--small-images=8", "--least-train-boxes=1", "--least-validation-boxes=0",
       "--least-boxes=1", "--least-classes=1", "--cap-step=4", "--least-side=0")  # fmt: skip

LOAD = """
import socket
def refuse(*arguments):
    raise AssertionError("reached for the network")
socket.socket.connect = refuse
from datasets import load_dataset
for name, streaming in ((None, False), ("small", False), (None, True), ("small", True)):
    dataset = load_dataset("openimage-mini", name, streaming=streaming)
    for split, rows in dataset.items():
        count = 0
        for row in rows:
            count += 1
            assert row["image"].size == (row["width"], row["height"])
            assert len(row["objects"]["bbox"]) == len(row["objects"]["category"]) > 0
        names = rows.features["objects"]["category"].feature.names
        print(name or "default", "streaming" if streaming else "map-style", split, count, ", ".join(names), sep="; ")
"""


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no folder with Open Images rows and photos")
def test_a_miniature_of_real_rows_and_photos(tmp_path):
    """Whole builds through a server that misbehaves: same hash twice, and loaded offline in a clean process."""
    photos = {path.stem: path.read_bytes() for path in (SAMPLE / "images").iterdir()}
    ids = sorted(photos)
    header, *derived = (SAMPLE / "derived-annotations-bbox.csv").read_text().splitlines()
    _, *original = (SAMPLE / "train-annotations-bbox.csv").read_text().splitlines()
    assert header == BOX_HEADER
    val = set(ids[::5])
    hashes = []
    for k in range(2):
        source, output = tmp_path / f"source-{k}", tmp_path / str(k) / "openimage-mini"
        source.mkdir()
        train = [row for row in [*derived, *original] if row[:16] not in val]
        lines(source / "train-annotations-bbox.csv", header, random.Random(k).sample(train, len(train)))
        lines(source / "validation-annotations-bbox.csv", header, [row for row in derived if row[:16] in val])
        classes = (SAMPLE / "class-descriptions-boxable.csv").read_bytes()
        files = {f"/{'validation' if i in val else 'train'}/{i}.jpg": photos[i] for i in ids}
        with ImageServer({"/openimages/v5/class-descriptions-boxable.csv": classes, **files}) as server:
            for n, path in enumerate(sorted(server.files)):
                server.faults[path] = [["503", "cut"], ["html"], ["drop", "retry:0"], ["slow"], ["500"]][(n + k) % 5]
            hashes.append(build(server, source, output, rule=ONE))
    assert hashes[0] == hashes[1]
    manifest = load_manifest(output)
    # 12 photos are there; of the other training images only the rows are, and their photos are gone.
    assert manifest["splits"] == {"train": 12, "validation": 3}
    assert len((output / "missing_ids.txt").read_text().split()) == manifest["recipe"]["missing_ids"] == 18
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=tmp_path / "1", capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""},
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    found = [line.split("; ")[:4] for line in loaded.stdout.splitlines()]
    small = str(manifest["recipe"]["small_images"])
    assert 0 < int(small) < 12
    for streaming in ("map-style", "streaming"):
        assert ["default", streaming, "train", "12"] in found and ["default", streaming, "validation", "3"] in found
        assert ["small", streaming, "train", small] in found and ["small", streaming, "validation", "3"] in found
