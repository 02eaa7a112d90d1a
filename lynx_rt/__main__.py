"""`python -m lynx_rt` is the `lynx-rt` command."""

import sys

from lynx_rt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
