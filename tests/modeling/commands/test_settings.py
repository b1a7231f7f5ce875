"""The bridge between dataclasses, YAML files and flags."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path

import pytest

from modeling_decodepos.commands.settings import (
    CommandParser,
    add_flags,
    check,
    from_values,
    given,
    key,
    number,
    read_yaml,
)


@dataclass(frozen=True)
class Settings:
    """Of a test."""

    name: str = key(MISSING, "of the thing")
    steps: int = key(3, "updates in all", "ours", within=(1, 9))
    share: float = key(0.5, "a share of 100 %", within=(None, 1), above=0)
    kind: str = key("small", "which kind", choices=("small", "large"))
    fast: bool = key(False, "whether it is fast")
    sizes: tuple[int, ...] = key((1, 2), "some sizes", within=(1, None))
    folder: Path = Path("here")
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)


def parse(*words: str) -> Settings:
    parser = CommandParser(prog="test")
    add_flags(parser, Settings, only=("name", "steps", "share", "kind", "fast", "sizes", "folder"))
    return from_values(Settings, given(parser.parse_args(words), Settings), "the command line")


def test_values_have_the_type_of_their_field():
    values = {"name": Path("a"), "share": 1, "sizes": [3], "folder": "there", "names": {"a": "b"}}
    made = from_values(Settings, values, "x")
    assert made == Settings("a", share=1.0, sizes=(3,), folder=Path("there"), names={"a": "b"})
    assert isinstance(made.share, float) and isinstance(made.name, str)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "a"}, "file: unknown key 'nam'. Did you mean 'name'?"),
        ({"name": "a", "zzz": 1}, "unknown key 'zzz'. Expected one of name, steps, "),
        ({}, "file lacks name."),
        ({"name": "a", "steps": 0}, "file: steps is 0; expected at least 1 and at most 9."),
        ({"name": "a", "steps": 2.5}, "steps is 2.5 (float); expected int."),
        ({"name": "a", "steps": True}, "steps is True (bool); expected int."),
        ({"name": "a", "share": 0.0}, "share is 0.0; expected more than 0 and at most 1."),
        ({"name": "a", "share": float("nan")}, "share is nan; expected more than 0"),
        ({"name": "a", "kind": "smal"}, "kind is 'smal'; expected one of small, large."),
        ({"name": "a", "fast": "yes"}, "fast is 'yes' (str); expected bool."),
        ({"name": "a", "sizes": "12"}, "sizes is '12'; expected a list."),
        ({"name": "a", "sizes": [1, 0]}, "sizes is (1, 0); expected at least 1."),
        ({"name": "a", "sizes": [1, "b"]}, "sizes is 'b' (str); expected int."),
        ({"name": "a", "sizes": [0]}, "sizes is (0,); expected at least 1."),
        ({"name": "a", "names": ["b"]}, "names is ['b']; expected lines of `key: value`."),
    ],
)
def test_what_does_not_fit_is_named(values: dict, message: str):
    with pytest.raises(ValueError, match=".") as error:
        from_values(Settings, values, "file")
    assert message in str(error.value)


def test_flags_are_the_fields():
    assert parse("--name", "007") == Settings("007")  # a word stays as it was typed
    typed = parse("--name", "~", "--steps", "4", "--share", "1e-1", "--fast", "--sizes", "5", "6", "--folder", "no")
    assert typed == Settings("~", 4, 0.1, fast=True, sizes=(5, 6), folder=Path("no"))
    assert parse("--name", "a", "--fast", "--no-fast") == parse("--name", "a", "--fast", "false") == Settings("a")
    with pytest.raises(ValueError, match="steps is 'many' .str.; expected int"):
        parse("--name", "a", "--steps", "many")


def test_help_shows_choices_defaults_and_origins(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--kind {small,large} which kind (default: small)" in shown
    assert "updates in all (default: 3; origin: ours)" in shown
    assert "--sizes INT [INT ...] some sizes (default: 1 2)" in shown
    assert "a share of 100 % (default: 0.5)" in shown and "--name STR of the thing --" in shown
    with pytest.raises(SystemExit):
        parse("--steps", "3")
    assert "the following arguments are required: --name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name", ""], "name is empty"),
        (["--name", "a", "--folder", ""], "folder is empty; expected a path"),
        (["--name", "a", "--share", ".nan"], "share is nan"),
        (["--name", "a", "--share", ".inf"], "share is inf"),
        (["--name", "a", "--steps", "010"], "steps is '010' .str.; expected int"),
        (["--name", "a", "--steps", "1:30"], "steps is '1:30' .str.; expected int"),
        (["--name", "a", "--steps", "0x10"], "steps is '0x10' .str.; expected int"),
        (["--name", "a", "--steps", "[" * 2000], r"steps is '\[\[+\.\.\."),
    ],
)
def test_what_no_key_means_is_refused(flags: list[str], message: str):
    """Empty words, numbers without end, and what only YAML 1.1 calls a number: 010 was 8, 1:30 was 90."""
    with pytest.raises(ValueError, match=message):
        parse(*flags)


def test_numbers_in_yaml_are_those_that_people_write(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1_000\nb: -2.5e-3\nc: .5\nd: 010\ne: 1:30\nf: 2024-01-01\ng: 0\n")
    assert read_yaml(file) == {"a": 1000, "b": -0.0025, "c": 0.5, "d": "010", "e": "1:30", "f": "2024-01-01", "g": 0}


def test_values_that_unfold_without_end_do_not_fill_the_message(tmp_path: Path):
    file = tmp_path / "a.yaml"
    lines = [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 30)]
    file.write_text("\n".join(["x0: &x0 [a]", *lines, "steps: *x29", ""]))
    values = {"name": "a", "steps": read_yaml(file)["steps"]}
    with pytest.raises(ValueError, match="steps is") as caught:
        from_values(Settings, values, "a.yaml")
    assert len(str(caught.value)) < 1000


def test_a_flag_that_is_a_number_has_a_range(capsys: pytest.CaptureFixture):
    parser = CommandParser(prog="x")
    parser.add_argument("--count", type=number(int, 1, 9))
    parser.add_argument("--output", type=Path)
    assert parser.parse_args(["--count", "9"]).count == 9
    for words, message in (
        (["--count", "0"], "--count: it is 0; expected at least 1 and at most 9"),
        (["--count", "nan"], "invalid int value: 'nan'"),
        (["--output", ""], "--output: it is empty; expected a path"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        assert message in capsys.readouterr().err


def test_a_yaml_file_is_its_keys(tmp_path: Path):
    file = tmp_path / "a.yaml"
    for text, values in (("", {}), ("rate: 1e-3\nsteps: 2\n", {"rate": 0.001, "steps": 2})):
        file.write_text(text)
        assert read_yaml(file) == values
    for text, message in (
        ("- 1", "holds a list; expected lines of `key: value`"),
        ("a: [1", "is no YAML"),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands on line 1 and on line 3"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_yaml(file)
    with pytest.raises(ValueError, match="nowhere.yaml cannot be read"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_a_key_that_is_a_list_is_refused(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("? [a, b]\n: 1\n")
    with pytest.raises(ValueError, match="r.yaml"):
        read_yaml(file)
