"""`ray job submit … python jobs/predict.py` takes the options of `cropray predict`."""

import sys

from cropray.cli import main

main(["predict", *sys.argv[1:]])
