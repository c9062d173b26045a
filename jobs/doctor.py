"""Entry point for `ray job submit`: the same options as `cropray doctor`, seen from the cluster."""

import sys

from cropray.cli import main

main(["doctor", *sys.argv[1:]])
