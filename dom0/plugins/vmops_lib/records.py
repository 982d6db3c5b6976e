"""vmops-xenstore: the records of a running domain that its guest shares.

Paths are relative to the domain's folder and stay below the few folders in it that guest and host use to talk. What is
read there was perhaps written by the guest: bytes that nobody has checked, so values travel in base64.
"""

import base64
import re

from vmops_lib import domains
from vmops_lib.arguments import Arguments
from vmops_lib.dispatch import Function
from vmops_lib.failures import BadArgument, NotFound, TooLarge
from vmops_lib.limits import RESULT_BYTES
from vmops_lib.xenstore import Again, Store

_FOLDERS = ("attr", "control", "data", "feature", "vm-data")
_PATH = re.compile(r"[A-Za-z0-9_@-]+(/[A-Za-z0-9_@-]+)*\Z")
_LONGEST_PATH = 2048
_TRIES = 50
_PATH_NEEDS = (*domains.NEEDS, "path")


def read(args: Arguments) -> "dict[str, str]":
    """Return a record's value. Raises NotFound."""
    with Store() as store:
        return {"value_b64": _packed(store.read(_path(store, args)))}


def list_names(args: Arguments) -> "dict[str, list[str]]":
    """Return the names directly below a path. Raises NotFound."""
    with Store() as store:
        return {"names": store.names(_path(store, args))}


def tree(args: Arguments) -> "dict[str, dict[str, str]]":
    """Return all records at and below a path, by their paths relative to the domain, as they were at one moment.

    Raises NotFound, TooLarge.
    """
    with Store() as store:
        path = _path(store, args)
        begin = len(path) - len(args.text("path"))
        for _ in range(_TRIES):
            store.begin()
            values = _below(store, path)
            try:
                store.commit()
            except Again:
                continue
            return {"values": {path[begin:]: _packed(value) for path, value in values.items()}}
    raise TooLarge("The records change faster than they can be read: ask for a smaller part of them.")


def write(args: Arguments) -> "dict[str, bool]":
    """Set a record's value. Raises TooLarge."""
    with Store() as store:
        store.write(_path(store, args), args.data("value_b64"))
    return {"written": True}


def remove(args: Arguments) -> "dict[str, bool]":
    """Remove a record and all below it, if it is there."""
    with Store() as store:
        return {"removed": store.remove(_path(store, args))}


def _path(store: Store, args: Arguments) -> str:
    """Return the absolute path of a record. Raises BadArgument, Rebooted."""
    path = args.text("path")
    if not _PATH.match(path) or len(path) > _LONGEST_PATH:
        raise BadArgument("Argument path must be names of letters, digits, - _ @ between single slashes.")
    if path.partition("/")[0] not in _FOLDERS:
        raise BadArgument("Argument path must begin with one of: %s." % ", ".join(_FOLDERS))
    domid = args.domid()
    domains.check(store, domid, args.uuid("vm_uuid"))
    return "%s/%s" % (domains.folder(domid), path)


def _below(store: Store, path: str) -> "dict[str, bytes]":
    """Return the values at and below a path. Raises NotFound, TooLarge."""
    values = {path: store.read(path)}
    waiting = [path]
    size = 0
    while waiting:
        folder = waiting.pop()
        for name in store.names(folder):
            below = "%s/%s" % (folder, name)
            try:
                values[below] = store.read(below)
            except NotFound:
                continue
            waiting.append(below)
            size += len(below) + len(values[below])
            if size > RESULT_BYTES:
                raise TooLarge("There are more than %d bytes below the path." % RESULT_BYTES)
    return values


def _packed(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


FUNCTIONS = {
    "read": Function(read, _PATH_NEEDS, deadline_s=20),
    "list": Function(list_names, _PATH_NEEDS, deadline_s=20),
    "tree": Function(tree, _PATH_NEEDS, deadline_s=40),
    "write": Function(write, (*_PATH_NEEDS, "value_b64"), deadline_s=20),
    "remove": Function(remove, _PATH_NEEDS, deadline_s=20),
}
