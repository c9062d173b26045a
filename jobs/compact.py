"""Entry point of the stage for `ray job submit`: the same options as `cropray compact`."""

import sys

from cropray.cli import main

main(["compact", *sys.argv[1:]])
