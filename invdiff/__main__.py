"""`python -m invdiff`, the same as `invdiff`."""

import sys

from .cli import main

sys.exit(main())
