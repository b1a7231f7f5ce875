"""transformers' mixins, imported from where `fetch` put them; what their files import beside is no concern of ours."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

import pytest

from tests.upstream.fetch import PACKAGES, RELEASE, TESTS

if "DECODEPOS_UPSTREAM" not in os.environ:
    pytest.skip("transformers' own tests: make test-upstream", allow_module_level=True)
if not TESTS.is_dir():
    pytest.skip(f"the source distribution of {RELEASE} cannot be had here", allow_module_level=True)

_PACKAGE = "transformers_common_tests"
# Of text generation and of exporters, whose files the source distribution leaves out.
_BESIDE: dict[str, dict[str, Any]] = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {"return_dict": False, "output_hidden_states": True}},
}


def _module(name: str, path: str | None = None, **names: Any) -> None:
    module = ModuleType(name)
    module.__path__ = [] if path is None else [path]
    vars(module).update(names)
    sys.modules[name] = module


sys.path.append(str(PACKAGES))
_module(_PACKAGE, str(TESTS))
for _name, _names in _BESIDE.items():
    _module(f"{_PACKAGE}.{_name.partition('.')[0]}")
    _module(f"{_PACKAGE}.{_name}", **_names)

ModelTesterMixin: Any = importlib.import_module(f"{_PACKAGE}.test_modeling_common").ModelTesterMixin
BackboneTesterMixin: Any = importlib.import_module(f"{_PACKAGE}.test_backbone_common").BackboneTesterMixin
ConfigTester: Any = importlib.import_module(f"{_PACKAGE}.test_configuration_common").ConfigTester
