"""`python -m igsp.cli` is `igsp`."""

import sys

from igsp.cli import main

if __name__ == "__main__":
    sys.exit(main())
