"""`import modeling_decodepos` loads next to nothing, and transformers knows our models as if it loaded everything."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.forks import Forks

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


# What takes long of what transformers imports.
BELOW_TRANSFORMERS = ("torch._dynamo", "torch.distributed.tensor", "torch.export", "datasets", "scipy.optimize")


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(BELOW_TRANSFORMERS, PYTHONWARNINGS="error") as forks:
        yield forks


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_auto_classes_know_the_models_whatever_comes_first(start: str, forks: Forks):
    new = "import sys; assert 'transformers' not in sys.modules"
    done = forks.run(["-c", f"{new}\n{start}\n{IS_KNOWN}"])
    assert done.returncode == 0, done.stderr


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_import_alone_is_light_and_has_every_name():
    run("import sys, modeling_decodepos; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")
    code = "import pickle, modeling_decodepos as m; assert m.losses.OBJECTIVES is m.OBJECTIVES"
    run(f"{code}; assert all(pickle.loads(pickle.dumps(getattr(m, name))) for name in m.__all__)")
    with pytest.raises(ImportError, match="no_such_name"):
        from modeling_decodepos import no_such_name  # noqa: F401
