"""`python -m igsp.cli` is `igsp`."""

import sys

from igsp.cli import main

sys.exit(main())
