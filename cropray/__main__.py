"""`python -m cropray` is `cropray`."""

from cropray.cli import main

main()
