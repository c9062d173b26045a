"""`ray job submit … python jobs/report.py` takes the options of `cropray report`."""

import sys

from cropray.cli import main

main(["report", *sys.argv[1:]])
