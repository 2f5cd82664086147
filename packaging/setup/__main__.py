"""What `make setup` and `make lock` start, with any Python from 3.11 to 3.13 and before anything is installed."""

from __future__ import annotations

import os
import sys

try:
    import signal
    from typing import TYPE_CHECKING
except KeyboardInterrupt:
    os._exit(130)

if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    # Nothing has begun; an exception in the middle of the imports below would only become their traceback.
    os._exit(130)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from enclave_setup.app import main

    sys.exit(main(sys.argv[1:]))
