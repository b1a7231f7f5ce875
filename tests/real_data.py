"""Where real photos with annotations are, if they are: tests that need them skip where they are not."""

import os
from pathlib import Path

REAL_DATA = Path(os.environ.get("DECODEPOS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
COCO_MULTIOBJECT = REAL_DATA / "coco-multiobject"
COCO_SAMPLE = REAL_DATA / "coco-sample"
OPENIMAGES_SAMPLE = REAL_DATA / "openimages-sample"
