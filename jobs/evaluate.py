"""Entry point of the stage for `ray job submit`: the same options as `cropray evaluate`."""

import sys

from cropray.cli import main

main(["evaluate", *sys.argv[1:]])
