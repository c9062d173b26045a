"""Entry point of the stage for `ray job submit`: the same options as `cropray demo`."""

import sys

from cropray.cli import main

main(["demo", *sys.argv[1:]])
