"""`import modeling_decodepos` loads next to nothing, and transformers knows our models as if it loaded everything."""

import subprocess
import sys

import pytest

IS_KNOWN = """
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForPreTraining
import modeling_decodepos.modeling_decodepos as ours
config = AutoConfig.for_model("decodepos")
known = [auto._model_mapping[type(config)] for auto in (AutoModel, AutoBackbone, AutoModelForPreTraining)]
assert known == [ours.DecodePosModel, ours.DecodePosBackbone, ours.DecodePosForPreTraining], known
"""
STARTS = {
    "library first": "import modeling_decodepos",
    "transformers first": "from transformers import AutoModel; import modeling_decodepos",
    "configurations between": "import modeling_decodepos; from transformers import AutoConfig; AutoConfig.for_model",
    "an early configuration": "import modeling_decodepos; from transformers import ResNetConfig",
    "all that a run needs": "import training.pretrain",
    "file of the models": "from modeling_decodepos.modeling_decodepos import DecodePosModel",
    "file of the configuration": "from modeling_decodepos.configuration_decodepos import DecodePosConfig",
}


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_auto_classes_know_the_models_whatever_comes_first(start: str):
    run(f"{start}\n{IS_KNOWN}")


def test_the_import_alone_is_light_and_has_every_name():
    run("import sys, modeling_decodepos; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")
    code = "import pickle, modeling_decodepos as m; assert m.losses.OBJECTIVES is m.OBJECTIVES"
    run(f"{code}; assert all(pickle.loads(pickle.dumps(getattr(m, name))) for name in m.__all__)")
    with pytest.raises(ImportError, match="no_such_name"):
        from modeling_decodepos import no_such_name  # noqa: F401
