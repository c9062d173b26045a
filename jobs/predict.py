"""Entry point of the stage for `ray job submit`: the same options as `cropray predict`."""

import sys

from cropray.cli import main

main(["predict", *sys.argv[1:]])
