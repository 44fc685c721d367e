"""``python -m slabpool``: the same as the ``slabpool`` command."""

import sys

from slabpool.cli import main

if __name__ == "__main__":
    sys.exit(main())
