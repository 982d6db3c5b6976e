"""vmops-kernel: kernel and ramdisk files of paravirtual guests, which XAPI reads from dom0's own disk.

A file is named after its image and the SHA-256 of its content, so that a file of the right name has the right content,
and equal files are there once. It comes in parts, each small enough for an argument; a part that comes twice does no
harm, and nobody sees the file before all of it is there and its content proved right. Nothing but the files with our
own beginning of name, directly in `FOLDER`, is ever touched.
"""

import hashlib
import os
import re

from vmops_lib import lock, place
from vmops_lib.arguments import Arguments
from vmops_lib.dispatch import Function
from vmops_lib.failures import BadArgument, NoSpace

#: The folder that XAPI lets kernels be in.
FOLDER = "/boot/guest"
MOST_BYTES = 256 << 20
#: What must stay free on the disk of dom0's own kernel.
_SPARED_BYTES = 32 << 20
_IMAGE_ID = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_SHA256 = r"[0-9a-f]{64}"
_NAME = re.compile(r"vmops-(%s)-(%s)\Z" % (_IMAGE_ID, _SHA256))
_BLOCK = 1 << 20
_KEY = ("image_id", "sha256")


class _File:
    """One file: where it is, and where it grows."""

    def __init__(self, args: Arguments) -> None:
        self.sha256 = args.text("sha256", _SHA256)
        self.name = "vmops-%s-%s" % (args.text("image_id", _IMAGE_ID), self.sha256)
        self.dom0_path = "%s/%s" % (FOLDER, self.name)
        self.path = place.path(self.dom0_path)
        self.part = place.path("%s/.%s.part" % (FOLDER, self.name))

    def state(self) -> "dict[str, object]":
        """Say how much of the file is there."""
        is_complete = os.path.isfile(self.path) and not os.path.islink(self.path)
        received = _size(self.path if is_complete else self.part)
        return {"complete": is_complete, "received": received, "path": self.dom0_path}


def put(args: Arguments) -> "dict[str, object]":
    """Take the part of a file that begins at `offset`, and say how much is there now: `received`, `complete`, `path`.

    A part that begins beyond what is there is not taken: the answer says where to go on. Raises BadArgument when all
    is there and is not what the file's name says: then it is thrown away. NoSpace, Busy.
    """
    file, size = _File(args), args.number("size", 1, MOST_BYTES)
    offset, data = args.number("offset", 0, size), args.data("data_b64")
    if offset + len(data) > size:
        raise BadArgument("Argument data_b64 goes beyond the size of the file.")
    os.makedirs(place.path(FOLDER), mode=0o755, exist_ok=True)
    with lock.held(file.name):
        state = file.state()
        if state["complete"] or offset > _size(file.part):
            return state
        _check_room(file, size)
        with open(os.open(file.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b") as part:
            part.truncate(offset)
            part.seek(offset)
            part.write(data)
            part.flush()
            if offset + len(data) == size:
                _publish(file, part.fileno())
        return file.state()


def verify(args: Arguments) -> "dict[str, object]":
    """Read a file and say whether it is there and right: `complete`, `path`; a damaged one is removed."""
    file = _File(args)
    with lock.held(file.name):
        if file.state()["complete"] and _digest(file.path) != file.sha256:
            os.unlink(file.path)
        return file.state()


def remove(args: Arguments) -> "dict[str, bool]":
    """Remove a file, and what has come of it, if it is there."""
    file = _File(args)
    with lock.held(file.name):
        found = [path for path in (file.path, file.part) if os.path.lexists(path)]
        for path in found:
            os.unlink(path)
    return {"removed": bool(found)}


def list_files(_args: Arguments) -> "dict[str, list[dict[str, object]]]":
    """List the complete files: `image_id`, `sha256`, `size`, `path`."""
    folder = place.path(FOLDER)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    known = [match for match in map(_NAME.match, names) if match is not None]
    return {
        "files": [
            {
                "image_id": match.group(1),
                "sha256": match.group(2),
                "size": _size(os.path.join(folder, match.group())),
                "path": "%s/%s" % (FOLDER, match.group()),
            }
            for match in known
        ]
    }


def _publish(file: _File, fd: int) -> None:
    """Give a file that has come completely its name. Raises BadArgument when the content is not what was promised."""
    os.fsync(fd)
    if _digest(file.part) != file.sha256:
        os.unlink(file.part)
        raise BadArgument("The file that has come does not have the SHA-256 that was promised; send it again.")
    os.chmod(file.part, 0o644)
    os.rename(file.part, file.path)
    folder = os.open(os.path.dirname(file.path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_room(file: _File, size: int) -> None:
    found = os.statvfs(os.path.dirname(file.part))
    free, wanted = found.f_bavail * found.f_frsize, size - _size(file.part)
    if free - wanted < _SPARED_BYTES:
        raise NoSpace("%s of this host has %d MiB free, too little for %d bytes." % (FOLDER, free >> 20, wanted))


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


FUNCTIONS = {
    "put": Function(put, (*_KEY, "size", "offset", "data_b64"), deadline_s=60),
    "verify": Function(verify, _KEY, deadline_s=60),
    "remove": Function(remove, _KEY, deadline_s=20),
    "list": Function(list_files, deadline_s=20),
}
