"""The diagnosis finds what was planted, by as much as it was planted, and nothing where nothing is."""

import pytest
import torch

from benchmarks.known_cases import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_known_case(case: Case):
    torch.set_num_threads(1)
    found = case.find()
    assert found is not None
    assert found == pytest.approx(case.expected, abs=case.tolerance)
