"""Entry point of the stage for `ray job submit`: the same options as `cropray export`."""

import sys

from cropray.cli import main

main(["export", *sys.argv[1:]])
