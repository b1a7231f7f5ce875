# /// script
# requires-python = ">=3.11"
# dependencies = ["decodepos[data]>=0.1.0"]
#
# [tool.hf-jobs]
# flavor = "t4-small"
# timeout = "2h"
# ///
"""How much place and surroundings are in a backbone's features, as a page, from nothing but uv.

uv run scripts/diagnose.py MODEL --output report

Takes the flags of `decodepos diagnose`. docs/jobs.md runs it on a rented GPU.
"""

import sys

from modeling_decodepos.diagnosis.command import main

if __name__ == "__main__":
    sys.exit(main(name="diagnose.py"))
