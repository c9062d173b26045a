"""`ray job submit … python jobs/tune.py` takes the options of `cropray tune`."""

import sys

from cropray.cli import main

main(["tune", *sys.argv[1:]])
