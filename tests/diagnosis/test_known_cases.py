"""The diagnosis finds what was planted, by as much as it was planted, and nothing where nothing is."""

from pathlib import Path

import pytest
import torch

from benchmarks.known_cases import CASES, Case
from modeling_decodepos.diagnosis.measures.metrics import EXTRA_PROTOCOLS, MEASURES, METRICS

DOCS = Path(__file__).parents[2] / "docs" / "diagnosis.md"


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * case.slow, id=case.name) for case in CASES]
)
def test_known_case(case: Case):
    torch.set_num_threads(1)
    found = case.find()
    assert found is not None
    assert found == pytest.approx(case.expected, abs=case.tolerance)


def test_the_page_of_measures_is_complete():
    text = DOCS.read_text(encoding="utf-8")
    protocols = {metric.protocol for metric in METRICS} | set(EXTRA_PROTOCOLS.values())
    assert [name for name in MEASURES if f"### `{name}`" not in text] == []
    assert [protocol for protocol in protocols if f"`{protocol}`" not in text] == []
    assert [case.name for case in CASES if f"| {case.name} |" not in text] == []
