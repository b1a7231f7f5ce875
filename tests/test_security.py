"""Nothing that a user may have downloaded is run: a walk over the source for calls that could."""

import ast
from collections.abc import Iterator

from tests.test_layering import FILES, ROOT

NEVER = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "cloudpickle.load",
    "cloudpickle.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "pandas.read_pickle",
    "torch.jit.load", "torch.hub.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.full_load_all",
    "yaml.unsafe_load_all", "os.system", "os.popen", "shutil.unpack_archive", "eval", "exec",
}  # fmt: skip
NEVER_METHODS = {"extractall", "load_state"}  # archives choose where they write; accelerate's states are pickles
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}
# Tests open what they made themselves: pickles, the README, an sdist, remote code.
TESTS_MAY = ("pickle.load", "exec", "extractall", "trust_remote_code")


def unsafe_calls(source: str) -> list[str]:
    """Each call that could run what it reads, with its line."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    safe = SAFE_LOADERS | {
        name for name, node in classes.items() if {_dotted(b, names) for b in node.bases} & SAFE_LOADERS
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            found += [f"line {node.lineno}: {problem}" for problem in _problems(node, given, names, safe)]
    return found


def _problems(call: ast.Call, given: dict[str, ast.expr], names: dict[str, str], safe: set[str]) -> Iterator[str]:
    name = _dotted(call.func, names)
    if name in NEVER:
        yield name
    if isinstance(call.func, ast.Attribute) and call.func.attr in NEVER_METHODS:
        yield call.func.attr
    if name == "torch.load" and not _is(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if name == "numpy.load" and not _is(given.get("allow_pickle"), False, None):
        yield "numpy.load with allow_pickle"
    if name == "yaml.load":
        loader = given.get("Loader") or (call.args[1] if len(call.args) > 1 else None)
        if loader is None or _dotted(loader, names) not in safe:
            yield "yaml.load without a safe loader"
    for flag in ("shell", "trust_remote_code"):
        if not _is(given.get(flag), False, None):
            yield flag


def _is(node: ast.expr | None, *values: object) -> bool:
    """Whether an argument is one of some constants; an absent one counts as None."""
    if node is None:
        return None in values
    return isinstance(node, ast.Constant) and any(node.value is value for value in values)


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What a name of this file stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return ""


def test_no_call_runs_what_it_reads():
    found = {}
    for room, path in FILES:
        calls = unsafe_calls(path.read_text(encoding="utf-8"))
        if room == "tests":
            calls = [call for call in calls if not call.split(": ")[1].startswith(TESTS_MAY)]
        if calls:
            found[str(path.relative_to(ROOT))] = calls
    assert found == {}


def test_the_walk_finds_what_it_is_for():
    source = """
import os, pickle, subprocess, numpy as np, torch, yaml
from pickle import loads as read
from torch import load

class Strict(yaml.SafeLoader): ...
class Loose(yaml.FullLoader): ...

torch.load(path, weights_only=True)
torch.load(path)
load(path, weights_only=flag)
torch.load(path, weights_only=1)
pickle.dumps(value)
read(data)
np.load(path)
np.load(path, allow_pickle=True)
yaml.load(text, Loader=Strict)
yaml.load(text, Strict)
yaml.safe_load(text)
yaml.load(text)
yaml.load(text, Loader=Loose)
model.eval()
eval(text)
subprocess.run(command, shell=False)
subprocess.run(command, shell=True)
os.system(command)
archive.extractall(folder)
AutoModel.from_pretrained(name, trust_remote_code=False)
AutoModel.from_pretrained(name, trust_remote_code=trusted)
"""
    assert unsafe_calls(source) == [
        "line 10: torch.load without weights_only=True",
        "line 11: torch.load without weights_only=True",
        "line 12: torch.load without weights_only=True",
        "line 14: pickle.loads",
        "line 16: numpy.load with allow_pickle",
        "line 20: yaml.load without a safe loader",
        "line 21: yaml.load without a safe loader",
        "line 23: eval",
        "line 25: shell",
        "line 26: os.system",
        "line 27: extractall",
        "line 29: trust_remote_code",
    ]
