# /// script
# requires-python = ">=3.11"
# dependencies = ["decodepos[data]>=0.1.0"]
#
# [tool.hf-jobs]
# flavor = "t4-small"
# timeout = "6h"
# ///
"""Features of pictures, of their regions and of their patches, as a file, from nothing but uv.

uv run scripts/embed.py MODEL --data PICTURES --output features.parquet

Takes the flags of `decodepos embed`. docs/jobs.md runs it on a rented GPU.
"""

import sys

from modeling_decodepos.embedding.command import main

if __name__ == "__main__":
    sys.exit(main(name="embed.py"))
