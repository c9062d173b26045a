"""`cropray doctor` as a job: the same options, seen from the cluster."""

import sys

from cropray.cli import main

main(["doctor", *sys.argv[1:]])
