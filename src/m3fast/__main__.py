"""`python -m m3fast` is the command `m3fast`."""

import sys

from m3fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
