"""`python -m onecurve`: the `onecurve` command, for launchers that start a module."""

import sys

from onecurve.cli import main

sys.exit(main())
