"""`python -m instancezoo.cli`: the command `instancezoo`."""

import sys

from .main import main

sys.exit(main())
