"""The command line. `main` is the entry point; stages are imported when they are called."""

from cropray.cli.stages import main

__all__ = ["main"]
