"""Who may import whom. Packages stand above one another, rooms inside a package too, and there is no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From top to bottom. A package may import itself and what stands after it.
PACKAGES = ("tests", "benchmarks", "training", "model_cards", "dataset_scripts", "modeling_decodepos")
LIBRARY = ROOT / "modeling_decodepos"
# The files beside the library's rooms: the model and what it is made of.
MODEL = (
    "modeling_decodepos configuration_decodepos feature_maps imagenet losses region_pooling regions stored_models "
    "backbones batch_norms"
)
# The rooms of each package: what a room may import of its own package, beside itself. A file or folder not named here
# is an error; commands (`__main__`) and the files named with "*" stand above all rooms.
ROOMS: dict[str, dict[str, str]] = {
    "training": {
        "pretrain": "*",
        "tutorial": "*",
        "sweep": "run probes evaluation data views provenance recipe errors",
        "publish": "run probes export data views provenance recipe errors",
        "evaluation": "data views provenance recipe errors",
        "run": "probes export data views provenance recipe errors",
        "probes": "data views recipe errors",
        "export": "views",
        "show": "data views recipe errors",
        "provenance": "data recipe",
        "data": "views recipe errors",
        "views": "recipe",
        "recipe": "precision",
        "precision": "",
        "errors": "",
    },
    "dataset_scripts": {
        "prepare": "*",
        "publish": "check hub build files",
        "overlap": "check build files",
        "preview": "build pictures files",
        "check": "build pictures files",
        "sources": "build pictures proposals files",
        "hub": "build files",
        "build": "proposals pictures files",
        "proposals": "files",
        "pictures": "files",
        "files": "",
    },
    "modeling_decodepos": {
        "looking": f"diagnosis drawing data commands {MODEL}",
        "embedding": f"diagnosis data commands {MODEL}",
        "diagnosis": f"augmentations drawing data commands {MODEL}",
        "augmentations": MODEL,
        **dict.fromkeys(("drawing", "data", "commands"), ""),
        "modeling_decodepos": " ".join(MODEL.split()[1:8]),
        "configuration_decodepos": "feature_maps imagenet",
        **dict.fromkeys(MODEL.split()[2:], ""),
    },
    "modeling_decodepos/diagnosis": {
        "command": "*",
        "run": "results measures models data statistics",
        "report": "results measures models data statistics",
        "results": "measures models data statistics",
        "measures": "models data statistics",
        "models": "",
        "data": "",
        "statistics": "",
    },
}
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


def rooms_used(package: str, path: Path) -> set[str]:
    """The other rooms of its package that a file imports from."""
    parts = path.relative_to(ROOT / package).with_suffix("").parts
    here = [*package.split("/"), *parts[:-1]]
    used = set()
    for found in imports_of(path.read_text(encoding="utf-8")):
        base = here[: len(here) - found.level + 1] if found.level else []
        words = [*base, *filter(None, found.module.split("."))]
        for name in found.names or ("",):
            full = [*words, name]
            depth = package.count("/") + 1
            if full[:depth] == package.split("/") and len(full) > depth:
                used.add(full[depth])
    return used & ROOMS[package].keys() - {parts[0]}


def import_graph() -> dict[str, set[str]]:
    """Each module with the modules of this repository that it imports, wherever the import stands."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for _, path in FILES}
    graph = {}
    for name, path in modules.items():
        package = name.split(".")[:-1]
        reached = set()
        for found in imports_of(path.read_text(encoding="utf-8")):
            base = package[: len(package) - found.level + 1] if found.level else []
            words = ".".join([*base, *filter(None, found.module.split("."))])
            reached |= {full for full in (words, *(f"{words}.{n}" for n in found.names)) if full in modules}
        graph[name] = reached - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Every module that imports itself by way of others."""

    def reached(start: str) -> set[str]:
        seen, todo = set[str](), list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        return seen

    return sorted(name for name in graph if name in reached(name))


def upward(room: str, imports: list[Import]) -> list[str]:
    """Imports of a room that stands above this one."""
    above = PACKAGES[: PACKAGES.index(room)]
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
FILES = [(room, path) for room in PACKAGES for path in files_of(room)]
IDS = [str(path.relative_to(ROOT)) for _, path in FILES]


@pytest.mark.parametrize(("room", "path"), FILES, ids=IDS)
def test_imports_point_down(room: str, path: Path) -> None:
    imports = imports_of(path.read_text(encoding="utf-8"))
    assert not upward(room, imports)
    assert not torchvision_at_import(imports)


@pytest.mark.parametrize("name", MODEL.split())
def test_files_of_the_model_are_flat_siblings(name: str) -> None:
    found = imports_of((LIBRARY / f"{name}.py").read_text(encoding="utf-8"))
    assert not not_flat(found, set(MODEL.split()))


@pytest.mark.parametrize("name", remote_code_files())
def test_remote_code_needs_nothing_else(name: str) -> None:
    assert not foreign_to_remote_code(imports_of((LIBRARY / name).read_text(encoding="utf-8")), STANDARD_LIBRARY)


def test_remote_code_is_the_model_and_nothing_of_the_data() -> None:
    files = remote_code_files()
    assert {"configuration_decodepos.py", "modeling_decodepos.py", "region_pooling.py", "losses.py"} <= set(files)
    assert set(files) <= {f"{name}.py" for name in MODEL.split()}


ROOM_FILES = [(package, path) for package in ROOMS for path in files_of(package)]


@pytest.mark.parametrize(("package", "path"), ROOM_FILES, ids=[str(path.relative_to(ROOT)) for _, path in ROOM_FILES])
def test_a_room_imports_what_stands_below_it(package: str, path: Path) -> None:
    parts = path.relative_to(ROOT / package).with_suffix("").parts
    if parts[-1] in ("__main__", "__init__") and len(parts) <= 2:
        return
    assert parts[0] in ROOMS[package], f"{parts[0]} has no place among the rooms of {package}"
    allowed = ROOMS[package][parts[0]]
    assert allowed == "*" or not rooms_used(package, path) - set(allowed.split())


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_stand_on_floors(package: str) -> None:
    order = list(ROOMS[package])
    for room, allowed in ROOMS[package].items():
        assert allowed == "*" or all(order.index(room) < order.index(lower) for lower in allowed.split())


def test_no_circle_of_imports() -> None:
    assert not circles(import_graph())
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


@pytest.mark.parametrize(("package", "most"), [("training", 8), ("dataset_scripts", 8), ("modeling_decodepos", 10)])
def test_few_files_at_the_top(package: str, most: int) -> None:
    assert len([path for path in (ROOT / package).glob("*.py") if not path.name.startswith("__")]) <= most


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
