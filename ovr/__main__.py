"""`python -m ovr`: the same as the `ovr` command."""

import sys

from ovr.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
