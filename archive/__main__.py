"""`python -m archive` is the command `chestct`."""

import sys

from archive.command import main

if __name__ == "__main__":
    sys.exit(main())
