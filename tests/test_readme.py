"""What the README tells a newcomer to type is what exists."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from modeling_decodepos import DecodePosConfig, DecodePosForPreTraining
from modeling_decodepos.backbones import BACKBONES
from tests.image_processors import needs_auto_image_processor
from training.export.command import export_backbone, export_pretraining
from training.recipe import parse_command_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
WITH_SUBCOMMANDS = {"dataset_scripts.prepare", "training.evaluation"}


def blocks(language: str, text: str = README) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [text for named, text in fences if named == language]


def commands() -> list[list[str]]:
    """Every command line in the blocks and the inline code of the README, docs/training.md and docs/data.md."""
    text = README + TRAINING + DATA
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


def test_modules_take_the_flags_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    modules = {words[2] for words in commands() if words[:2] == ["python", "-m"]}
    assert {"training.views", "training.run.report", "dataset_scripts.prepare"} <= modules
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
                assert argument in shown, f"{module} knows no {argument}"


@needs_auto_image_processor
def test_python_blocks_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On an untrained model in the place where the trained one would be."""
    torch.manual_seed(0)
    config = DecodePosConfig(backbone_config=BACKBONES["resnet_tiny"](), region_bins=4)
    model = DecodePosForPreTraining(config)
    monkeypatch.chdir(tmp_path)
    export_backbone(model, "runs/scenes_smoke/export/backbone", 64)
    export_pretraining(model, "runs/scenes_smoke/export/pretraining", 64)
    snippets = blocks("python")
    assert len(snippets) >= 4
    for snippet in snippets:
        values: dict = {}
        exec(compile(snippet, "README.md", "exec"), values)
        if "output" in values:
            assert values["output"].region_embeddings[values["output"].valid_regions].shape == (3, 256)
        if "features" in values:
            assert values["features"].shape == (1, 2, 64, 7, 7)


def test_the_tree_names_files_that_exist():
    (tree,) = blocks("")
    folder = ROOT
    for line in tree.splitlines():
        names = re.findall(r"[\w/]+\.py|\b\w+/", line.split("   ")[0] if line.startswith(" ") else line)
        if not line.startswith(" "):
            folder = ROOT / line.split()[0]
            assert folder.is_dir(), folder
            continue
        for name in names:
            assert (folder / name).exists(), f"{folder.name}/{name}"


def test_pictures_are_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_every_recipe_is_in_the_table():
    recipes = {path.stem for path in (ROOT / "training" / "recipes").glob("*.yaml")}
    table = TRAINING[TRAINING.index("| recipe |") : TRAINING.index("One key, `global_batch_size`")]
    assert set(re.findall(r"`(\w+)`", table)) - {"objective"} == recipes
