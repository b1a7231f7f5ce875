"""What the README tells a newcomer to type is what exists."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import modeling_decodepos.__main__
from modeling_decodepos import DecodePosConfig, DecodePosForPreTraining
from modeling_decodepos.backbones import BACKBONES
from tests.image_processors import needs_auto_image_processor
from training.export.folders import export_backbone, export_pretraining
from training.recipe import parse_command_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
MORE = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("docs/start.md", "docs/remedy.md", "SKILL.md"))
WITH_SUBCOMMANDS = {"dataset_scripts.prepare", "training.evaluation"}


def blocks(language: str, text: str = README) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [text for named, text in fences if named == language]


def commands() -> list[list[str]]:
    """Every command line in the blocks and the inline code of the README, of SKILL.md and of five pages of docs/."""
    text = README + TRAINING + CONCEPTS + DATA + MORE
    inline = re.findall(r"`((?:make|python -m|accelerate launch|ACCELERATE_USE_CPU=true torchrun)[^`]*)`", text)
    lines = [line for block in blocks("bash", text) for line in block.splitlines()] + inline
    return [shlex.split(line.split("  #")[0].split(" | ")[0], comments=True) for line in lines if line.strip()]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {words[1] for words in commands() if words[0] == "make"}
    assert {"pretrain", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+)", script, flags=re.MULTILINE) == ["quality", "test", "pretrain"]


def test_training_commands_parse(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    found = 0
    for words in commands():
        if "training/pretrain.py" in words:
            arguments = words[words.index("training/pretrain.py") + 1 :]
            if arguments[:1] != ["[RECIPE.yaml]"]:  # the general form
                parse_command_line(arguments)
            found += 1
    assert found >= 2


def test_commands_of_the_library_parse():
    found = []
    for words in commands():
        if words[0] == "decodepos" and words[1] in modeling_decodepos.__main__.COMMANDS:
            place = modeling_decodepos.__main__.COMMANDS[words[1]][0]
            importlib.import_module(f"modeling_decodepos.{place}").build_parser().parse_args(words[2:])
            found.append(words[1])
    assert set(found) == {"diagnose", "embed", "look"} and len(found) >= 8


def test_modules_take_the_flags_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    modules = {words[2] for words in commands() if words[:2] == ["python", "-m"]}
    assert {"training.views", "training.probes.find", "dataset_scripts.prepare"} <= modules
    for words in commands():
        if words[:2] != ["python", "-m"]:
            continue
        module, *arguments = words[2:]
        sub = arguments[:1] if module in WITH_SUBCOMMANDS else []
        monkeypatch.setattr(sys, "argv", [module, *sub, "--help"])
        is_package = importlib.util.find_spec(module).submodule_search_locations
        program = importlib.import_module(f"{module}.__main__" if is_package else module)
        with pytest.raises(SystemExit) as stop:
            program.main()
        assert stop.value.code == 0, module
        shown = capsys.readouterr().out
        assert not sub or f"{module} {sub[0]} " in shown
        for argument in arguments:
            if argument.startswith("--"):
                assert argument.replace("-", "_").replace("__", "--", 1) in shown, f"{module} knows no {argument}"


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 130


@needs_auto_image_processor
def test_python_blocks_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On an untrained model in the place where the trained one would be."""
    torch.manual_seed(0)
    config = DecodePosConfig(backbone_config=BACKBONES["resnet_tiny"](), region_bins=4)
    model = DecodePosForPreTraining(config)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    export_backbone(model, "runs/scenes_smoke/export/backbone", 64)
    export_pretraining(model, "runs/scenes_smoke/export/pretraining", 64)
    snippets = blocks("python") + blocks("python", CONCEPTS)
    assert len(snippets) >= 5
    shapes = []
    for snippet in snippets:
        values: dict = {}
        exec(compile(snippet, "README.md", "exec"), values)
        if "features" in values:
            shapes.append(tuple(values["features"].shape))
    assert shapes == [(1, 2, 128), (1, 2, 64, 7, 7)]


def test_the_tree_names_files_that_exist():
    (tree,) = blocks("")
    for line in tree.splitlines():
        folder, *names = re.findall(r"\w+\.py|\w+/", line)
        assert (ROOT / folder).is_dir(), folder
        for name in names:
            assert (ROOT / folder / name).exists() or (ROOT / name).is_dir(), f"{folder}{name}"


def test_pictures_are_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_every_recipe_is_in_the_table():
    recipes = {path.stem for path in (ROOT / "training" / "recipes").glob("*.yaml")}
    table = TRAINING[TRAINING.index("| recipe |") : TRAINING.index("One key, `global_batch_size`")]
    assert set(re.findall(r"`(\w+)`", table)) - {"objective"} == recipes
