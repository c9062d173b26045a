"""`ray job submit … python jobs/finetune.py` takes the options of `cropray finetune`."""

import sys

from cropray.cli import main

main(["finetune", *sys.argv[1:]])
