"""`python -m geep_triton`: the same as the command `geep`."""

import sys

from geep_triton.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
