"""`python -m bertflow`."""

import sys

from bertflow.cli import main

sys.exit(main())
