import os
import stat

import torch

from modeling_decodepos.diagnosis import load_debias
from modeling_decodepos.diagnosis.measures.debias import build_layer, save_layer
from modeling_decodepos.diagnosis.measures.position import positional_subspace


def test_a_saved_layer_may_be_read_by_whom_the_umask_lets(tmp_path):
    layer = build_layer(positional_subspace(torch.randn(5, 9, 6)), 1)
    before = os.umask(0o022)
    try:
        save_layer(layer, tmp_path / "layer.safetensors", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "layer.safetensors").stat().st_mode) == 0o644
    torch.testing.assert_close(load_debias(tmp_path / "layer.safetensors").weight, layer.weight)
