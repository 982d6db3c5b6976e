"""The simulator as the child of a test process: it ends with its parent, even when that is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading

from simulator.cli import main


def _end_with_parent() -> None:
    """Wait for the end of standard input, which the parent holds open, then end in order."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    sys.exit(main())
