"""`python -m instancezoo.cli` is the command `instancezoo`."""

import sys

from .main import main

sys.exit(main())
