"""Entry point of the stage for `ray job submit`: the same options as `cropray tune`."""

import sys

from cropray.cli import main

main(["tune", *sys.argv[1:]])
