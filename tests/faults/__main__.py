"""Run the command line as ``python -m faults``."""

import sys

from faults.run import main

sys.exit(main())
