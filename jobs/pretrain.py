"""Entry point of the stage for `ray job submit`: the same options as `cropray pretrain`."""

import sys

from cropray.cli import main

main(["pretrain", *sys.argv[1:]])
