"""python -m training.publish RUN --repo ORG/NAME."""

import sys

from training.publish.command import main

if __name__ == "__main__":
    sys.exit(main())
