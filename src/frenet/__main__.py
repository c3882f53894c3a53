"""``python -m frenet`` is the command ``frenet``."""

import sys

from frenet.cli import main

if __name__ == "__main__":
    sys.exit(main())
