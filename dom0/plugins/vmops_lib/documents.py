"""Files and results in the forms of the pack."""

import base64
import json
import os
import tempfile
import zlib


def packed(data: bytes) -> str:
    """Return base64(zlib(data)), for results."""
    return base64.b64encode(zlib.compress(data)).decode("ascii")


def read_json(path: str) -> "object":
    """Return the value in a file, None when there is no such file. Raises ValueError for what is not JSON."""
    try:
        with open(path, encoding="ascii") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def write_json(path: str, value: "object") -> None:
    """Put a value into a file: readers see the old one or the new one, also after a loss of power."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
