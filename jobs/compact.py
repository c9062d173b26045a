"""`ray job submit … python jobs/compact.py` takes the options of `cropray compact`."""

import sys

from cropray.cli import main

main(["compact", *sys.argv[1:]])
