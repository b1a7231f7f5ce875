"""Whether transformers can pick an image processor by itself."""

import pytest
from transformers import AutoImageProcessor

# Without torchvision, transformers 5.17 puts a stand-in here that only raises.
needs_auto_image_processor = pytest.mark.skipif(
    "torchvision" in getattr(AutoImageProcessor, "_backends", ()), reason="this transformers wants torchvision for it"
)
