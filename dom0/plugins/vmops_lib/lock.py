"""One at a time: locks between the plugins of a host, freed when their process ends, however it does."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from vmops_lib import place
from vmops_lib.failures import Busy

_FOLDER = "/run/lock/vmops"
_PAUSE_S = 0.05


@contextlib.contextmanager
def held(name: str, patience_s: float = 10) -> "Iterator[None]":
    """Hold the lock `name` for the body. Raises Busy when another process keeps it for all of `patience_s`."""
    folder = place.path(_FOLDER)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        wait(file.fileno(), name, patience_s)
        yield


def wait(fd: int, name: str, patience_s: float) -> None:
    """Take the lock of an open file. Raises Busy."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline_s:
                raise Busy("Another call works on %s." % name) from None
            time.sleep(_PAUSE_S)
        else:
            return
