"""Entry point of the stage for `ray job submit`: the same options as `cropray rois`."""

import sys

from cropray.cli import main

main(["rois", *sys.argv[1:]])
