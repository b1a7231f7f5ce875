"""Settings: fields of a dataclass that are keys of a YAML file, flags of a command and lines of its help.

    @dataclass(frozen=True)
    class Settings:
        steps: int = key(100, "updates in all", within=(1, None))

        def __post_init__(self) -> None:
            check(self)

`from_values` makes the dataclass from a mapping, which `read_yaml` reads from a file. `add_flags` adds a flag for each
field to a parser, `given` returns the values that were typed. A field without `key` has no help and no range.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import math
import re
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import yaml

from .garbage import collect_less

T = TypeVar("T")


def key(
    default: Any,
    help: str,
    origin: str = "",
    *,
    choices: tuple[str, ...] = (),
    within: tuple[float | None, float | None] = (None, None),
    above: float | None = None,
) -> Any:
    """A dataclass field with what its help says and which values it takes.

    `dataclasses.MISSING` as the default makes a field that must be given. `within` is its least and greatest value and
    `above` what it must be greater than; of a tuple, they hold for every item.
    """
    limits = {"minimum": within[0], "maximum": within[1], "above": above}
    return dataclasses.field(default=default, metadata={"help": help, "origin": origin, "choices": choices, **limits})


def fields(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass by name."""
    return {field.name: field for field in dataclasses.fields(kind)}


def check(settings: Any) -> None:
    """Raises ValueError where a value is none of its field's choices, out of its range, infinite, or empty."""
    for name, field in fields(settings).items():
        value, limits = getattr(settings, name), field.metadata
        if limits.get("choices") and value not in limits["choices"]:
            raise ValueError(f"{name} is {_shown(value)}; expected one of {', '.join(limits['choices'])}.")
        if value in ("", ()) and field.default != value:
            raise ValueError(f"{name} is empty. Give a value, or leave it out for the default.")
        for item in value if isinstance(value, tuple) else (value,):
            if problem := _misfit(item, *(limits.get(limit) for limit in ("minimum", "maximum", "above"))):
                raise ValueError(f"{name} is {_shown(value)}; {problem}.")


def from_values(kind: type[T], values: Mapping[str, Any], source: str) -> T:
    """A dataclass from values by field name, each in its field's type; fields left out take their defaults.

    The ValueError for a name that is unknown or missing, or a value of the wrong type or range, begins with `source`.
    """
    known, hints = fields(kind), get_type_hints(kind)
    refuse_unknown(values, known, source)
    required = (field.name for field in known.values() if _has_no_default(field))
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{source} lacks {', '.join(missing)}.")
    try:
        settings = kind(**{name: _convert(name, value, hints[name]) for name, value in values.items()})
        check(settings)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return settings


def refuse_unknown(names: Iterable[str], known: Collection[str], source: str) -> None:
    """Raises ValueError for the first name that is not known, with the nearest one that is."""
    for name in names:
        if name not in known:
            raise ValueError(f"{source}: unknown key {name!r}.{nearest(str(name), known)}")


def nearest(name: str, known: Collection[str]) -> str:
    """A hint for whoever mistyped a name: " Did you mean …?", or all names if they are not too many."""
    if close := difflib.get_close_matches(name, known, n=1):
        return f" Did you mean {close[0]!r}?"
    return f" Expected one of {', '.join(known)}." if len(known) <= 20 else " `--help` lists all keys."


def _convert(name: str, value: Any, kind: Any) -> Any:
    """The value in a field's own type; a bool is no number and a word no bool."""
    outer = get_origin(kind)
    if outer is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{name} is {_shown(value)}; expected a list.")
        return tuple(_convert(name, item, get_args(kind)[0]) for item in value)
    if outer is not None:
        if not isinstance(value, outer):
            raise ValueError(f"{name} is {_shown(value)}; expected lines of `key: value`.")
        return value
    if kind is str and isinstance(value, bool):  # YAML reads no / off as false; a word was meant
        return "yes" if value else "no"
    accepted = {float: (int, float), str: (str, Path), Path: (str, Path)}.get(kind, kind)
    if not isinstance(value, accepted) or (kind in (int, float) and isinstance(value, bool)):
        hint = " A file goes before the flags." if kind is bool and isinstance(value, str) else ""
        raise ValueError(f"{name} is {_shown(value)} ({type(value).__name__}); expected {kind.__name__}.{hint}")
    if kind is Path and not str(value):
        raise ValueError(f"{name} is empty; expected a path.")
    try:
        return kind(value)
    except OverflowError:
        raise ValueError(f"{name} is {_shown(value)}; expected at most {sys.float_info.max:.1e}.") from None


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _misfit(value: Any, least: float | None, most: float | None = None, above: float | None = None) -> str:
    """What was expected of a number that is out of its range; empty if it fits, or is no number."""
    if not isinstance(value, int | float):
        return ""
    fits = (least is None or value >= least) and (most is None or value <= most) and (above is None or value > above)
    if fits and (isinstance(value, int) or math.isfinite(value)):
        return ""
    words = {"at least": least, "more than": above, "at most": most}
    limits = " and ".join(f"{word} {limit}" for word, limit in words.items() if limit is not None)
    return f"expected {limits or 'a finite number'}"


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def _shown(value: Any) -> str:
    """A value as a message can hold it: a number may have thousands of digits, and nested YAML no end."""
    return str(value) if isinstance(value, float) else _SHORT.repr(value)


# -------------------------------------------------------------------------------------------------------------- YAML


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file; an empty file has none."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply; expected lines of `key: value`.") from None
    except ValueError as error:  # a key that stands there twice
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(values, dict | None):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected lines of `key: value`.")
    return values or {}


def write_yaml(values: Mapping[str, Any]) -> str:
    """The text of a YAML file from which `read_yaml` gives these values; plain YAML leaves the word 1e3 unquoted."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)


def read_value(text: str) -> Any:
    """A number, a bool or whatever else a typed value is in YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text  # no number and no bool; `from_values` says so


class _Loader(yaml.SafeLoader):
    """Safe YAML with the numbers of YAML 1.2, where 1e-3 is one and 010 and 1:30 are none, that takes no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The values by key; plain YAML keeps the last of two and says nothing."""
        lines: dict[str, int] = {}
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                continue  # the parent class refuses it
            line = name.start_mark.line + 1
            if (first := lines.setdefault(name.value, line)) != line:
                raise ValueError(
                    f"the key {name.value!r} stands on line {first} and on line {line}; keep one of them."
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the words that `_Loader`, or a reader of YAML 1.1, would take for numbers."""


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]*(_[0-9]{3})*)",
    "tag:yaml.org,2002:float": (
        r"[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(0|[1-9][0-9]*)[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}
_REPLACED = {*_NUMBERS, "tag:yaml.org,2002:timestamp"}  # a date is a word: no key is one
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _REPLACED]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(f"^({_pattern})$"), list("-+.0123456789"))


# ------------------------------------------------------------------------------------------------------------- flags


def number(kind: type[int] | type[float], least: float, most: float = 2**31) -> Callable[[str], float]:
    """The `type` of a flag that is a number between two others."""

    def read(text: str) -> float:
        value = kind(text)
        if problem := _misfit(value, least, most):
            raise argparse.ArgumentTypeError(f"it is {text}; {problem}.")
        return value

    read.__name__ = kind.__name__  # argparse says "invalid int value"
    return read


def _read_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; expected a path.")
    return Path(text)


class CommandParser(argparse.ArgumentParser):
    """The parser of every command: --size_px may be typed --size-px, nothing is guessed, and defaults are shown."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{"formatter_class": _Formatter, "allow_abbrev": False, **options})
        self.register("type", Path, _read_path)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in the parent class, but what is left over is an error here, where the nearest flag is known."""
        if args is None:  # a process of its own, which goes on to import what is heavy
            collect_less()
        words = sys.argv[1:] if args is None else args
        found, rest = super().parse_known_args([self._spelled(word) for word in words], namespace)
        if rest:
            flag = rest[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
            self.error(f"unknown argument {rest[0]}.{nearest(flag, self._option_string_actions)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """End with a message and without the usage of all flags."""
        hint = "" if "--help" in message else " See `--help`."
        self.exit(2, f"{self.prog}: error: {message}{hint}\n")

    def _spelled(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        other = "--" + flag[2:].replace("-", "_")
        return other + equals + value if flag[:2] == "--" and other in self._option_string_actions else word


class _Formatter(argparse.HelpFormatter):
    """Shows the first spelling of a flag, and its default where there is one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.option_strings and action.default not in (None, "", False, argparse.SUPPRESS, [])
        return f"{text} (default: %(default)s)" if shown and "default" not in text else text

    def _format_action_invocation(self, action: argparse.Action) -> str:
        action = copy.copy(action)
        action.option_strings = [flag for flag in action.option_strings if flag.startswith("--")][:1]
        return super()._format_action_invocation(action)


class _HelpAll(argparse.Action):
    """Prints the help with the flags and the origins that `--help` leaves out."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        for action in parser._actions:
            action.help = getattr(action, "help_all", action.help)
        parser.print_help()
        parser.exit()


def add_flags(
    parser: argparse.ArgumentParser,
    *kinds: Any,
    only: Collection[str] | None = None,
    brief: Collection[str] | None = None,
) -> None:
    """A flag for every field of some dataclasses (or for `only` some), `--name VALUE`; a bare `--name` sets a bool.

    `--help` shows the flags named in `brief`; then there is `--help_all`, which shows all and where defaults are from.
    """
    for kind in kinds:
        title = (kind.__doc__ or "").strip().rstrip(".")
        group: Any = parser.add_argument_group(title) if len(kinds) > 1 else parser
        hints = get_type_hints(kind)
        for name, field in fields(kind).items():
            if only is not None and name not in only:
                continue
            hint = get_args(hints[name])[0] if get_origin(hints[name]) is tuple else hints[name]
            choices = field.metadata.get("choices")
            metavar = f"{{{','.join(choices)}}}" if choices else hint.__name__.upper()
            options: dict[str, Any] = {"required": _has_no_default(field), "help": _flag_help(field)}
            if hint is bool:
                options |= {"nargs": "?", "const": "true"}
                no = {"action": "store_const", "const": "false", "help": argparse.SUPPRESS}
                group.add_argument(f"--no_{name}", dest=name, **no)
            elif hint is not hints[name]:
                options["nargs"] = "+"
            action = group.add_argument(f"--{name}", metavar=metavar, **options)
            if brief is not None:
                action.help_all = action.help
                action.help = _flag_help(field, origin=False) if name in brief else argparse.SUPPRESS
    if brief is not None:
        parser.add_argument("--help_all", action=_HelpAll, nargs=0, help="show all keys and exit")


def _flag_help(field: dataclasses.Field[Any], origin: bool = True) -> str:
    notes = {}
    if not _has_no_default(field):
        value = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        notes["default"] = "none" if value == "" else value
    if origin and field.metadata.get("origin"):
        notes["origin"] = field.metadata["origin"]
    text = f"{field.metadata.get('help', '')} ({'; '.join(f'{name}: {note}' for name, note in notes.items())})"
    return text.removesuffix("()").strip().replace("%", "%%")


def given(arguments: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The values that were typed for a dataclass, by field name.

    A word stays as it was typed: a path may look like a date or a list, or be empty. Everything else is read as YAML.
    """
    hints, typed = get_type_hints(kind), vars(arguments)

    def read(text: Any, hint: Any) -> Any:
        return text if hint in (str, Path) or not isinstance(text, str) else read_value(text)

    values = {}
    for name in fields(kind):
        if (value := typed.get(name)) is not None:
            item = get_args(hints[name])[0] if get_origin(hints[name]) is tuple else hints[name]
            values[name] = [read(text, item) for text in value] if isinstance(value, list) else read(value, item)
    return values
