"""Who may import whom. Imports point down: training, model_cards, dataset_scripts, modeling_decodepos."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From top to bottom. A room may import itself and what stands after it.
ROOMS = ("tests", "benchmarks", "training", "model_cards", "dataset_scripts", "modeling_decodepos")
LIBRARY = ROOT / "modeling_decodepos"
REMOTE_CODE_START = "modeling_decodepos.py"
REMOTE_CODE_MAY_IMPORT = {"torch", "numpy", "transformers", "huggingface_hub"}


@dataclass(frozen=True)
class Import:
    """One imported module. `level` counts the leading dots, `always` is false for an import inside a function."""

    module: str
    level: int
    names: tuple[str, ...]
    always: bool
    line: int

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports_of(source: str) -> list[Import]:
    """Every import statement of a file, wherever it stands."""

    def walk(node: ast.AST, always: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, 0, (), always, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                names = tuple(alias.name for alias in child.names)
                yield Import(child.module or "", child.level, names, always, child.lineno)
            inside_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, always and not inside_function)

    return list(walk(ast.parse(source), True))


def upward(room: str, imports: list[Import]) -> list[str]:
    """Imports of a room that stands above this one."""
    above = ROOMS[: ROOMS.index(room)]
    return [f"line {i.line}: {i.module}" for i in imports if i.level == 0 and i.package in above]


def not_flat(imports: list[Import], siblings: set[str]) -> list[str]:
    """Imports of a library file that are not `from .sibling import name`, as far as they concern the library."""
    wrong = [i for i in imports if i.level == 0 and i.package == "modeling_decodepos"]
    wrong += [i for i in imports if i.level > 0 and (i.level > 1 or i.module not in siblings)]
    return [f"line {i.line}: {'.' * i.level}{i.module}" for i in wrong]


def torchvision_at_import(imports: list[Import]) -> list[str]:
    return [f"line {i.line}" for i in imports if i.package == "torchvision" and i.always]


def foreign_to_remote_code(imports: list[Import], standard_library: frozenset[str]) -> list[str]:
    """What transformers would ask a stranger to install; it looks into functions as well."""
    known = REMOTE_CODE_MAY_IMPORT | standard_library
    return [f"line {i.line}: {i.module}" for i in imports if i.level == 0 and i.package not in known]


def files_of(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts)


def remote_code_files() -> list[str]:
    """The modeling file and everything it reaches through relative imports: what lands in a released folder."""
    reached, todo = [], [REMOTE_CODE_START]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.append(name)
            found = imports_of((LIBRARY / name).read_text(encoding="utf-8"))
            todo += [f"{i.module}.py" for i in found if i.level]
    return sorted(reached)


STANDARD_LIBRARY = frozenset(__import__("sys").stdlib_module_names)
FILES = [(room, path) for room in ROOMS for path in files_of(room)]
IDS = [str(path.relative_to(ROOT)) for _, path in FILES]


@pytest.mark.parametrize(("room", "path"), FILES, ids=IDS)
def test_imports_point_down(room: str, path: Path) -> None:
    imports = imports_of(path.read_text(encoding="utf-8"))
    assert not upward(room, imports)
    assert not torchvision_at_import(imports)


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.py")), ids=lambda path: path.name)
def test_library_files_are_flat_siblings(path: Path) -> None:
    siblings = {other.stem for other in LIBRARY.glob("*.py")} - {"__init__"}
    assert not not_flat(imports_of(path.read_text(encoding="utf-8")), siblings)


@pytest.mark.parametrize("name", remote_code_files())
def test_remote_code_needs_nothing_else(name: str) -> None:
    assert not foreign_to_remote_code(imports_of((LIBRARY / name).read_text(encoding="utf-8")), STANDARD_LIBRARY)


def test_remote_code_is_the_model_and_nothing_of_the_data() -> None:
    files = remote_code_files()
    assert {"configuration_decodepos.py", "modeling_decodepos.py", "region_pooling.py", "losses.py"} <= set(files)
    assert not {"scenes.py", "schema.py", "__init__.py"} & set(files)


def test_the_rules_catch_what_they_are_for() -> None:
    source = """
import torch, torchvision.ops
from modeling_decodepos.regions import View
from . import helper
from .layers.roi import pool
from ..training import pretrain
from .regions import check_regions

def later():
    import torchvision
    from tests.hub_server import HubServer
    import datasets
    if True:
        import training.views
"""
    imports = imports_of(source)
    assert torchvision_at_import(imports) == ["line 2"]
    assert upward("modeling_decodepos", imports) == ["line 11: tests.hub_server", "line 14: training.views"]
    assert upward("training", imports) == ["line 11: tests.hub_server"]
    assert not upward("tests", imports)
    assert not_flat(imports, {"regions", "helper"}) == [
        "line 3: modeling_decodepos.regions",
        "line 4: .",
        "line 5: .layers.roi",
        "line 6: ..training",
    ]
    foreign = foreign_to_remote_code(imports, STANDARD_LIBRARY)
    assert [line.split(": ")[1] for line in foreign] == [
        "torchvision.ops",
        "modeling_decodepos.regions",
        "torchvision",
        "tests.hub_server",
        "datasets",
        "training.views",
    ]
