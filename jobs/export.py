"""`ray job submit … python jobs/export.py` takes the options of `cropray export`."""

import sys

from cropray.cli import main

main(["export", *sys.argv[1:]])
