"""The run: recipes, views, training, evaluation, export and report. Runs from the checkout, is not installed."""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

# Where modules went, for one release: imports and `python -m` of the old names still work.
FORMER = {
    "arguments": "recipe",
    "building": "run.setup",
    "cache": "data.cache",
    "images": "data.sources",
    "loading": "data.batches",
    "monitoring": "run.log",
    "online": "probes.during",
    "probe": "probes.before_after",
    "report": "run.report",
    "streaming": "data.streaming",
    "watch": "run.health",
}


class _Forward(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds a former module at its new place, and says where that is."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, leaf = name.rpartition(".")
        if package != __name__ or leaf not in FORMER:
            return None
        return importlib.util.spec_from_loader(name, self, origin=self._new_spec(name).origin)

    def exec_module(self, module: ModuleType) -> None:
        new = self._new_name(module.__name__)
        warnings.warn(f"{module.__name__} is {new} now", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m`."""
        spec = self._new_spec(name)
        assert isinstance(spec.loader, importlib.abc.InspectLoader)
        return spec.loader.get_code(spec.name)

    def get_source(self, name: str) -> str | None:
        return None

    def _new_spec(self, name: str) -> ModuleSpec:
        spec = importlib.util.find_spec(self._new_name(name))
        assert spec is not None
        return spec

    def _new_name(self, name: str) -> str:
        return f"{__name__}.{FORMER[name.rpartition('.')[2]]}"


sys.meta_path.append(_Forward())
