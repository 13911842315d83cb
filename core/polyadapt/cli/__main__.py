"""`python -m polyadapt.cli`."""

import sys

from polyadapt.cli import main

if __name__ == "__main__":
    sys.exit(main())
