"""Entry point of the stage for `ray job submit`: the same options as `cropray finetune`."""

import sys

from cropray.cli import main

main(["finetune", *sys.argv[1:]])
