"""What `make setup` and `make lock` start, with any Python from 3.11 to 3.13 and before anything is installed."""

from __future__ import annotations

import sys

from enclave_setup.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
