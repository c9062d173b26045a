"""`ray job submit … python jobs/demo.py` takes the options of `cropray demo`."""

import sys

from cropray.cli import main

main(["demo", *sys.argv[1:]])
