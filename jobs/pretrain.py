"""`ray job submit … python jobs/pretrain.py` takes the options of `cropray pretrain`."""

import sys

from cropray.cli import main

main(["pretrain", *sys.argv[1:]])
