"""The command line, as a module."""

import sys

from faults.run import main

sys.exit(main())
