"""Flags and recipes as they are mistyped, pasted and edited: numbers out of range, words that are empty, odd YAML."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from dataset_scripts.sources.openimage_mini.selection import Rule
from tests.hostile.running import refused
from tests.test_layering import ROOT
from training.evaluation.protocols import PROTOCOLS
from training.evaluation.settings import Common
from training.recipe import GROUPS

# A word that stands for a place where nothing may be written, whatever else is wrong.
OUT = "OUT"
EVALUATE = ("--model", "random:resnet_tiny", "--data", "data", "--output", OUT)

FLAGS: list[tuple[str, tuple, str]] = [
    ("evaluate", ("object_knn", *EVALUATE, "--temperature", "0"), "temperature is 0.0; expected more than 0"),
    ("evaluate", ("object_knn", *EVALUATE, "--temperature", ".nan"), "temperature is nan"),
    ("evaluate", ("object_knn", *EVALUATE, "--temperature", ".inf"), "temperature is inf"),
    ("evaluate", ("object_knn", *EVALUATE, "--temperature", "warm"), "temperature is 'warm'"),
    ("evaluate", ("object_knn", *EVALUATE, "--train_images", "-5"), "train_images is -5; expected at least 0"),
    ("evaluate", ("object_knn", *EVALUATE, "--size_px", "1"), "size_px is 1; expected at least 8"),
    ("evaluate", ("object_knn", *EVALUATE, "--size_px", "100000000"), "size_px is 100000000; .* at most 16384"),
    ("evaluate", ("object_knn", *EVALUATE, "--seeds", "-1"), "--seeds: it is -1; expected at least 0"),
    ("evaluate", ("object_knn", *EVALUATE, "--seeds", "99999999999999999999"), "--seeds: it is 9+; .* at most"),
    ("evaluate", ("object_knn", *EVALUATE, "--seeds", "1.5"), "--seeds.*invalid int value: '1.5'"),
    ("evaluate", ("object_knn", *EVALUATE, "--neighbours", "0"), r"neighbours is \(0,\); expected at least 1"),
    ("evaluate", ("object_knn", *EVALUATE, "--batch_size", "0"), "batch_size is 0"),
    ("evaluate", ("object_knn", *EVALUATE, "--num_workers", "-1"), "num_workers is -1"),
    ("evaluate", ("object_knn", *EVALUATE, "--region_bins", "-1"), "region_bins is -1"),
    ("evaluate", ("object_knn", *EVALUATE, "--model", ""), "model is empty"),
    ("evaluate", ("object_knn", *EVALUATE, "--data", ""), "data is empty"),
    ("evaluate", ("object_knn", *EVALUATE, "--output", ""), "--output: it is empty"),
    ("evaluate", ("object_knn", *EVALUATE, "--reading", "sideways"), "reading is 'sideways'; expected one of own"),
    ("evaluate", ("object_knn", *EVALUATE, "--device", "banana"), "--device.*'banana'.*cpu"),
    ("evaluate", ("object_knn", *EVALUATE, "--train_imags", "5"), "unknown argument --train_imags. Did you mean"),
    ("evaluate", ("linear_segmentation", *EVALUATE, "--steps", "0"), "steps is 0; expected at least 1"),
    ("evaluate", ("linear_segmentation", *EVALUATE, "--learning_rate", "0"), "learning_rate is 0.0"),
    ("evaluate", ("detection", *EVALUATE, "--maps", "0"), "maps is 0; expected at least 1"),
    ("evaluate", ("detection", *EVALUATE, "--queries", "0"), "queries is 0"),
    ("evaluate", ("patch_retrieval", *EVALUATE, "--memory_patches", "0"), "memory_patches is 0"),
    ("evaluate", ("object_linear", *EVALUATE, "--learning_rates", "-1"), r"learning_rates is \(-1.0,\)"),
    ("evaluate", ("object_lineal", *EVALUATE), "object_lineal"),
    ("export", ("model", "--output", OUT, "--image_size_px", "0"), "it is 0; expected at least 8"),
    ("export", ("model", "--output", OUT, "--size_px", "-5"), "it is -5; expected at least 8"),
    ("export", ("", "--output", OUT), "empty|no configuration"),
    ("export", ("model", "--output", OUT, "--format", "tensorflow"), "invalid choice: 'tensorflow'"),
    ("diagnose", ("random:resnet_tiny", "--output", OUT, "--size", "0"), "it is 0; expected at least 8"),
    ("diagnose", ("random:resnet_tiny", "--output", OUT, "--images", "0"), "it is 0; expected at least 4"),
    ("diagnose", ("random:resnet_tiny", "--output", OUT, "--layers", "0"), "it is 0; expected at least 1"),
    ("diagnose", ("random:resnet_tiny", "--output", OUT, "--seed", "-1"), "it is -1; expected at least 0"),
    ("diagnose", ("random:resnet_tiny", "--output", OUT, "--random_seeds", "0"), "it is 0; expected at least 1"),
    ("diagnose", ("random:resnet_tiny", "--output", OUT, "--measures", "colour"), "colour"),
    ("diagnose", ("random:resnet_tiny", "--output", OUT, "--data", ""), "--data|data is empty|no folder"),
    ("diagnose", ("random:resnet_tiny", "--output", OUT, "--eval_results", ""), "expected the id of the data set"),
    ("diagnose", ("", "--output", OUT), "model.*''|empty"),
    ("pretrain", ("--data", "", "--output_dir", OUT), "data is empty"),
    ("pretrain", ("--output_dir", ""), "output_dir is empty"),
    ("pretrain", ("--output_dir", OUT, "--allow_change", "nonsense"), "allow_change names nonsense"),
    ("pretrain", ("--output_dir", OUT, "--sgd_momentum", "1.0"), "sgd_momentum is 1.0; .* at most 0.9999"),
    ("pretrain", ("--output_dir", OUT, "--max_steps", "010"), "max_steps is '010'"),
    ("pretrain", ("--output_dir", OUT, "--max_steps", "1:30"), "max_steps is '1:30'"),
    ("pretrain", ("--output_dir", OUT, "--max_steps", "0x10"), "max_steps is '0x10'"),
    ("pretrain", ("--output_dir", OUT, "--max_steps", "1e99"), "max_steps is 1e.99 .float.; expected int"),
    ("pretrain", ("--output_dir", OUT, "--base_learning_rate", ".inf"), "base_learning_rate is inf"),
    ("pretrain", ("--output_dir", OUT, "--base_learning_rate", ".nan"), "base_learning_rate is nan"),
    ("pretrain", ("--output_dir", OUT, "--epochs", "-1"), "epochs is -1"),
    ("pretrain", ("--output_dir", OUT, "--seed", "-1"), "seed is -1"),
    ("pretrain", ("--output_dir", OUT, "--region_bins", "-1"), "region_bins is -1"),
    ("pretrain", ("--output_dir", OUT, "--view_size_px", "1000000000"), "view_size_px is 1000000000"),
    (
        "pretrain",
        ("--output_dir", OUT, "--small_view_scale", "0.001"),
        "small_view_scale 0.001 makes views of 0",
    ),
    ("pretrain", ("--output_dir", OUT, "--alone_size_px", "0"), "alone_size_px is 0"),
    ("pretrain", ("--output_dir", OUT, "--cpu", "maybe"), "cpu is 'maybe'"),
    ("pretrain", ("--output_dir", OUT, "--region_source", ""), "region_source is ''"),
    ("pretrain", ("nowhere.yaml",), "nowhere.yaml"),
    ("publish run", ("run", "--repo", "scenes"), "--repo is 'scenes', expected ORG/NAME"),
    ("publish run", ("run", "--repo", "org/a--b"), "org/a--b.*the Hub takes no repository"),
    ("publish run", ("run", "--repo", "org/name.git"), "the Hub takes no repository"),
    ("publish run", ("run", "--repo", "org/.name"), "the Hub takes no repository"),
    ("publish run", ("run", "--repo", "org/na me", "--dry_run"), "the Hub takes no repository"),
    ("publish run", ("run", "--repo", "org/" + "a" * 96), "the Hub takes no repository"),
    ("publish run", ("run", "--repo", "org/" + "a" * 90), "-pretraining'"),
    ("publish run", ("run", "--repo", "../../etc/passwd"), "--repo is"),
    ("publish data", ("data", "--repo", "org/a..b", "--dry_run"), "org/a..b.*the Hub takes no repository"),
    ("publish data", ("data", "--repo", "datasets/org/name"), "--repo is"),
    ("publish data", ("data", "--repo", ""), "--repo is ''"),
    ("publish data", ("data", "--repo", "org/näme", "--dry_run"), "the Hub takes no repository"),
    ("prepare", ("scenes", "--output", OUT, "--train", "-1"), "it is -1; expected at least 0"),
    ("prepare", ("scenes", "--output", OUT, "--size_px", "1"), "it is 1; expected at least 32"),
    ("prepare", ("scenes", "--output", OUT, "--workers", "-2"), "it is -2; expected at least 0"),
    ("prepare", ("scenes", "--output", ""), "--output: it is empty"),
    ("prepare", ("pairs", "--output", OUT, "--pairs", "0"), "it is 0; expected at least 16"),
    ("prepare", ("pairs", "--output", OUT, "--train", "0"), "it is 0; expected at least 2"),
    ("prepare", ("folder", "--output", OUT, "--source", ""), "--source: it is empty"),
    ("prepare", ("openimage-mini", "--output", OUT, "--requests_per_second", "0"), "it is 0; expected at least 0.01"),
    ("prepare", ("openimage-mini", "--output", OUT, "--requests_per_second", "nan"), "it is nan"),
    ("prepare", ("openimage-mini", "--output", OUT, "--connections", "0"), "it is 0; expected at least 1"),
    ("preview", ("data", "--output", "a.png", "--count", "0"), "it is 0; expected at least 1"),
    ("overlap", ("a", "b", "--threshold", "65"), "it is 65; .* at most 64"),
    ("views", ("--data", "data", "--index", "-1", "--output", "a.png"), "it is -1; expected at least 0"),
    ("find", ("model", "--output", "a.png", "--count", "1"), "it is 1; expected at least 4"),
    ("sweep", ("sweep.yaml", "--output", OUT, "--jobs", "0"), "it is 0; expected at least 1"),
    ("sweep", ("sweep.yaml", "--output", OUT, "--budget_minutes", "-1"), "it is -1; expected at least 0"),
    ("cache", ("--data", "data", "--output", OUT, "--cache_px", "0"), "it is 0; expected at least 8"),
]


@pytest.mark.parametrize(("command", "words", "says"), FLAGS, ids=lambda word: str(word)[-40:])
def test_flags(command: str, words: tuple, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(command, [str(tmp_path / "out") if word == OUT else word for word in words], says)
    assert not (tmp_path / "out").exists()


RECIPES: dict[str, tuple[str, str]] = {
    "a list": ("- 1\n", "holds a list"),
    "a word": ("hello\n", "holds a str"),
    "no YAML": ("a: [1\n", "is no YAML"),
    "tabs": ("a:\n\t- b\n", "is no YAML"),
    "a key twice": ("seed: 1\nseed: 2\n", "'seed' stands on line 1 and on line 2"),
    "a list as a key": ("? [a, b]\n: 1\n", "no YAML|key"),
    "a mapping as a key": ("? {a: 1}\n: 1\n", "no YAML|key"),
    "a number as a key": ("7: 1\n", "unknown key 7"),
    "nothing as a key": ("~: 1\n", "unknown key None"),
    "octal": ("max_steps: 010\n", "max_steps is '010'"),
    "sexagesimal": ("max_steps: 1:30\n", "max_steps is '1:30'"),
    "a date": ("max_steps: 2024-01-01\n", "max_steps is '2024-01-01'"),
    "nothing": ("max_steps:\n", "max_steps is None"),
    "a list for a number": ("max_steps: [1]\n", r"max_steps is \[1\]"),
    "a number for a word": ("data: 7\n", "data is 7"),
    "an object of Python": ("max_steps: !!python/object/apply:os.system ['true']\n", "is no YAML"),
    "an unknown tag": ("max_steps: !evil 1\n", "is no YAML"),
    "too deep": ("a: " + "[" * 20_000 + "\n", "no YAML|nested too deeply"),
    "without end": (
        "\n".join(["x0: &x0 [a]", *(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 25))]),
        "unknown key 'x0'",
    ),
    "a loop": ("max_steps: &a [*a]\n", "max_steps is|no YAML"),
    "mistyped": ("globl_batch_size: 8\n", "Did you mean 'global_batch_size'"),
    "a control character": ("data: 'a\x07b'\n", "is no YAML"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, tmp_path: Path) -> None:
    text, says = RECIPES[name]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    said = refused("pretrain", [recipe, "--output_dir", tmp_path / "out"], "recipe.yaml", says)
    assert len(said) < 3000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a list", "no YAML", "a list as a key", "too deep", "a number as a key", "mistyped"])
def test_the_same_as_a_sweep_and_as_a_rule_of_selection(name: str, tmp_path: Path) -> None:
    text, _ = RECIPES[name]
    file = tmp_path / "file.yaml"
    file.write_text(text, encoding="utf-8")
    refused("sweep", [file, "--output", tmp_path / "out"], "file.yaml")
    source = ("--source", tmp_path, "--recipe", file, "--ids_only")
    refused("prepare", ["openimage-mini", "--output", tmp_path / "out", *source], "file.yaml")


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    for data in (b"\xff\xfe\x00", b"\x00" * 100):
        (tmp_path / "recipe.yaml").write_bytes(data)
        refused("pretrain", [tmp_path / "recipe.yaml"], "recipe.yaml is no YAML")
    refused("pretrain", [tmp_path], "no recipe at .*expected a path")


SETTINGS: list[Any] = [*GROUPS, Common, Rule, *(entry.settings for entry in PROTOCOLS.values())]


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_number_has_its_range_beside_its_help(kind: Any) -> None:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        item = get_args(hints[field.name])[0] if get_origin(hints[field.name]) is tuple else hints[field.name]
        if item in (int, float):
            least = [field.metadata.get(limit) for limit in ("minimum", "above")]
            assert any(limit is not None for limit in least), field.name
            assert item is float or field.metadata.get("maximum") is not None, field.name


def test_no_flag_takes_any_number() -> None:
    for package in ("training", "dataset_scripts", "modeling_decodepos", "model_cards"):
        for file in (ROOT / package).rglob("*.py"):
            assert not re.search(r"[ (]type=(int|float)\b", file.read_text(encoding="utf-8")), file
