"""Entry point of the stage for `ray job submit`: the same options as `cropray report`."""

import sys

from cropray.cli import main

main(["report", *sys.argv[1:]])
