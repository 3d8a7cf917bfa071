"""`python -m hftl` is `hftl`."""

import sys

from hftl.cli import main

if __name__ == "__main__":
    sys.exit(main())
