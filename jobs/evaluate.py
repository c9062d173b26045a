"""`ray job submit … python jobs/evaluate.py` takes the options of `cropray evaluate`."""

import sys

from cropray.cli import main

main(["evaluate", *sys.argv[1:]])
