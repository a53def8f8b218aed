"""Runs the command line as `python -m serving`."""

import sys

from serving.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
