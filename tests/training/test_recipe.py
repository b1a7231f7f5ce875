import dataclasses
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_decodepos.augmentations.region_cutout import CUT_FORMS
from modeling_decodepos.augmentations.repositioning import FOREGROUND_SCALES
from modeling_decodepos.commands.settings import fields, write_yaml
from modeling_decodepos.losses import OBJECTIVES
from training.data.sources import COLUMNS, DRAWN
from training.recipe import BRIEF, DEFAULT_RECIPE, GROUPS, build_recipe, load_recipe, origins, parse_command_line


def test_every_key_says_what_it_does_and_where_its_default_comes_from():
    names = [f.name for group in GROUPS for f in dataclasses.fields(group)]
    assert len(names) == len(set(names)), "keys are flat: one name, one meaning"
    for group in GROUPS:
        for f in dataclasses.fields(group):
            assert f.metadata["help"].endswith("."), f.name
            assert any(word in f.metadata["origin"] for word in ("paper", "SoCo", "follow-up", "ours", "peers")), (
                f.name
            )


def test_the_choices_are_the_keys_of_the_tables():
    choices = {f.name: f.metadata["choices"] for group in GROUPS for f in dataclasses.fields(group)}
    assert choices["objective"] == tuple(OBJECTIVES)
    assert choices["cut_form"] == tuple(CUT_FORMS)
    assert choices["repositioning"] == (*FOREGROUND_SCALES, "none")
    assert choices["region_source"] == ("auto", *COLUMNS, *DRAWN)


def test_short_help_first(capsys: pytest.CaptureFixture):
    shown = {}
    for flag in ("--help", "--help-all", "--help_all"):
        with pytest.raises(SystemExit) as stop:
            parse_command_line([flag])
        assert stop.value.code == 0
        shown[flag] = capsys.readouterr().out
    assert shown["--help-all"] == shown["--help_all"]
    short, everything = (re.findall(r"^  --(\w+)", shown[flag], re.MULTILINE) for flag in ("--help", "--help_all"))
    assert set(short) == {"help", "help_all", *BRIEF} and short[:3] == ["help", "help_all", "data"]
    assert set(everything) == {"help", "help_all", *origins()}
    assert "origin: " in shown["--help_all"] and "origin: " not in shown["--help"]
    assert "{lars,adamw}" in shown["--help_all"] and "{both,byol_image," in shown["--help"]


@pytest.mark.parametrize("path", sorted(DEFAULT_RECIPE.parent.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_parses_and_says_its_cost(path: Path):
    assert load_recipe(path).name == path.stem
    head = path.read_text(encoding="utf-8").split("\n# ---")[0]
    for word in ("accelerate launch", "Cost:", "Expected:", "Status:"):
        assert word in head, f"{path.name} lacks {word!r} on top"


def test_the_command_line_wins_over_the_recipe(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("max_steps: 7\nbase_learning_rate: 1e-3\nmixed_precision: no\n")
    recipe = parse_command_line([str(file), "--max_steps", "9", "--cpu", "--use_predictor", "false"])
    assert (recipe.run.max_steps, recipe.run.base_learning_rate, recipe.run.cpu) == (9, 1e-3, True)
    assert recipe.model.use_predictor is False
    assert recipe.run.mixed_precision == "no"  # YAML reads the bare word as false


@pytest.mark.parametrize("word", ["2024-01-01", "007", "my: photos", "[a", "*x", "~", "no", "1e3"])
def test_a_word_of_the_command_line_stays_as_it_was_typed(word: str):
    assert parse_command_line(["--data", word]).data.data == word


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"globl_batch_size": 8}, ["globl_batch_size", "Did you mean 'global_batch_size'"]),
        ({"max_steps": "many"}, ["max_steps", "'many'", "int"]),
        ({"max_steps": True}, ["max_steps", "True", "int"]),
        ({"objective": "boath"}, ["objective", "boath", "byol_region"]),
        ({"cut_ratio_min": 0.5, "cut_ratio_max": 0.3}, ["cut_ratio", "0.5", "0.3"]),
        ({"view_size_px": 100, "cut_grid_px": 16}, ["cut_grid_px", "16", "100"]),
        ({"mixed_share": 1.5}, ["mixed_share", "1.5"]),
        ({"max_steps": 0, "epochs": 0}, ["max_steps", "epochs"]),
        ({"min_region_side": 0.0}, ["min_region_side", "0.0", "more than"]),
        ({"crop_aspect": 0.0}, ["crop_aspect", "0.0"]),
        ({"base_learning_rate": float("nan")}, ["base_learning_rate", "nan"]),
        ({"gradient_clip": -1.0}, ["gradient_clip", "-1.0"]),
        ({"hue": 3.0}, ["hue", "3.0"]),
        ({"num_workers": -1}, ["num_workers", "-1"]),
        ({"cache_dir": "pixels"}, ["cache_dir is 'pixels'", "cache_px is 0", "such as 288"]),
        ({"streaming": True, "measure_steps": 25}, ["measure_steps is 25", "streaming", "--measure_steps 0"]),
        ({"cpu": "recipes/x.yaml"}, ["cpu", "A file goes before the flags"]),
    ],
)
def test_a_wrong_value_is_named(values: dict, words: list[str]):
    with pytest.raises(ValueError, match=".") as error:
        build_recipe(values)
    for word in words:
        assert word in str(error.value)


def test_a_wrong_flag_or_file_ends_with_a_hint(capsys: pytest.CaptureFixture, tmp_path: Path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("max_steps: [3\n")
    twice = tmp_path / "twice.yaml"
    twice.write_text("seed: 1\nmax_steps: 3\n\nseed: 2\n")
    for arguments, words in [
        (["--max_step", "3"], "--max_steps"),
        (["nowhere.yaml"], "scenes_smoke"),
        ([str(broken)], "is no YAML"),
        ([str(twice)], "twice.yaml: the key 'seed' stands on line 1 and on line 4"),
        (["--max_steps", "["], "max_steps is '['"),
    ]:
        with pytest.raises(SystemExit) as stop:
            parse_command_line(arguments)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err


def test_a_key_that_is_gone_may_stand_in_a_recipe_if_it_asks_for_what_is_done():
    assert build_recipe({"views_on": "workers"}) == build_recipe({})
    with pytest.raises(ValueError, match="views_on is 'device', which is gone"):
        build_recipe({"views_on": "device"})


@pytest.mark.parametrize(("flags", "expected"), [("fpu avx512_bf16", "bf16"), ("fpu avx2", "no"), (None, "no")])
def test_auto_precision_is_what_the_cpu_multiplies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, expected: str
):
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"processor : 0\nflags : {flags}\n\nprocessor : 1\n")
    monkeypatch.setattr("training.precision._CPU_INFO", info)
    recipe = parse_command_line(["--mixed_precision", "auto", "--cpu"])
    assert recipe.run.mixed_precision == expected  # what run.json tells, and a continued run is held to
    assert parse_command_line(["--mixed_precision", "bf16", "--cpu"]).run.mixed_precision == "bf16"


# --------------------------------------------------------------------------------------------------------- any recipe

KEYS = {
    name: (kind, field)
    for group in GROUPS
    for kinds in [get_type_hints(group)]
    for name, field in fields(group).items()
    for kind in [kinds[name]]
}
# What is a word to people and may be something else to a parser.
words = st.sampled_from(
    ["010", "1e3", "1_000", "1:30", "0x10", "yes", "~", "null", ".inf", "2024-01-01", "a: b", "# a"]
)
words |= st.text("a1é☃.:/-_ \t\n'\"#{}[]&*!|>%@`\x00\x85\u2028\udc80", min_size=1, max_size=6)


def values_of(name: str) -> st.SearchStrategy[Any]:
    """Values of a key in its range."""
    kind, field = KEYS[name]
    least, most, above = (field.metadata[limit] for limit in ("minimum", "maximum", "above"))
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(least, most) if above is None else st.integers(above + 1, most)
    if kind is float:
        least = above if least is None else least
        return st.floats(least, most, exclude_min=above is not None, allow_nan=False, allow_infinity=False)
    assert kind is str
    return words


@given(
    st.sets(st.sampled_from(sorted(KEYS)), max_size=5).flatmap(
        lambda names: st.fixed_dictionaries({n: values_of(n) for n in sorted(names)})
    )
)
def test_any_recipe_comes_back_from_its_file(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]):
    try:
        recipe = build_recipe(values)
    except ValueError as error:  # keys that do not go together
        said = str(error)
        assert any(name in said for name in values)
        return
    assert {name: recipe.values()[name] for name in values if name != "mixed_precision"} == {
        name: value for name, value in values.items() if name != "mixed_precision"
    }
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(write_yaml(recipe.values()), encoding="utf-8")
    assert load_recipe(file).values() == recipe.values()


def meant(name: str, text: str) -> Any:
    """What a text says as the value of a key; None where it is none."""
    kind = KEYS[name][0]
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(
            text.strip().lower()
        )
    try:
        return kind(text.strip())
    except ValueError:
        return None


numbers = st.from_regex(
    r"[-+]?[0-9_]{1,6}(\.[0-9]{0,3})?([eE][-+]?[0-9]{1,3})?", fullmatch=True, alphabet="0123456789_.eE-+"
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(KEYS)), words | numbers | st.just("9" * 400) | st.just("9" * 5000))
def test_any_text_is_the_value_that_it_says_or_refused_in_a_sentence(
    capfd: pytest.CaptureFixture, name: str, text: str
):
    try:
        recipe = parse_command_line([f"--{name}={text}"])
    except SystemExit as stop:
        said, code = capfd.readouterr().err, stop.code
        assert code == 2 and name in said and said.count("\n") == 1, said
        assert len(said) < 500 or KEYS[name][0] is str, said  # a path is as long as it is
        return
    assert recipe.values()[name] == meant(name, text)
