"""`ray job submit … python jobs/rois.py` takes the options of `cropray rois`."""

import sys

from cropray.cli import main

main(["rois", *sys.argv[1:]])
