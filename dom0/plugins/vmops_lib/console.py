"""vmops-console: the last part of what a guest wrote to its console (dom0-and-guest.md 10.4).

xenconsoled writes a log for each guest where XenStore says so: `/local/logconsole/<domid>`, or `/local/logconsole/@`
with `%d` in it for all. By default neither is set and there is no log. The content is the guest's: nothing in it is
certain. `tend`, which cron runs once a minute, keeps the logs small, since dom0's disk for logs is, and begins with
them again after a reboot, which empties XenStore.
"""

import os
import re
import stat
import time

from vmops_lib import documents, domains, limits, lock, place
from vmops_lib.arguments import Arguments
from vmops_lib.dispatch import Function
from vmops_lib.failures import CommandFailed, NotFound, Unsupported
from vmops_lib.xenstore import Store

#: Where the pattern for all guests' logs is set.
EVERY_LOG = "/local/logconsole/@"
_ONE_LOG = "/local/logconsole/%d"
#: What `enable` sets, and the file that says so after a reboot.
PATTERN = "/var/log/xen/guest/console.%d"
_LOG_NAME = re.compile(r"console\.([0-9]{1,5})\Z")
_WISH_FILE = "/var/lib/vmops/console.json"
_LOG_FOLDER = "/var/log/"
_DEFAULT_BYTES = 100 << 10
#: A log that has grown beyond the first size is cut to the second.
MOST_BYTES, KEPT_BYTES = 1 << 20, 256 << 10
#: Logs of domains that are gone are kept for a week, and no more than these together.
KEPT_S = 7 * 86400
ALL_BYTES = 256 << 20


def tail(args: Arguments) -> "dict[str, object]":
    """Return the end of a console's log, compressed: `b64z`, the log's whole `size`, whether more was `truncated`.

    A domain that exists must be the VM's; of one that is gone the log is what is left. Raises NotFound, Unsupported.
    """
    domid, vm_uuid = args.domid(), args.uuid("vm_uuid")
    length = args.number("bytes", 1, limits.RESULT_BYTES, _DEFAULT_BYTES)
    with Store() as store:
        owner = domains.vm_of(store, domid)
        if owner and owner != vm_uuid:
            raise NotFound("Domain %d belongs to another VM by now." % domid)
        path = _log_of(store, domid)
    try:
        fd = os.open(place.path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise NotFound("Domain %d has no console log: %s." % (domid, error.strerror)) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CommandFailed("%s is not a file." % path)
        data = os.pread(fd, length, max(0, status.st_size - length))
    finally:
        os.close(fd)
    return {"b64z": documents.packed(data), "size": status.st_size, "truncated": status.st_size > len(data)}


def enable(_args: Arguments) -> "dict[str, object]":
    """Have the consoles of all guests logged from now on; a pattern that somebody has set stays."""
    with lock.held("console"), Store() as store:
        pattern = store.text(EVERY_LOG)
        if pattern:
            return {"changed": False, "pattern": pattern}
        documents.write_json(place.path(_WISH_FILE), PATTERN)
        _begin(store)
    return {"changed": True, "pattern": PATTERN}


def disable(_args: Arguments) -> "dict[str, bool]":
    """End what `enable` began; the logs stay until they are old."""
    with lock.held("console"), Store() as store:
        is_ours = store.text(EVERY_LOG) == PATTERN
        if is_ours:
            store.remove(EVERY_LOG)
        if os.path.exists(place.path(_WISH_FILE)):
            os.unlink(place.path(_WISH_FILE))
    return {"changed": is_ours}


def tend() -> None:
    """Cut logs that have grown too long, remove old ones of domains that are gone; only those that `enable` makes."""
    if documents.read_json(place.path(_WISH_FILE)) != PATTERN:
        return
    folder = place.path(os.path.dirname(PATTERN))
    with lock.held("console"), Store() as store:
        if not store.text(EVERY_LOG):
            _begin(store)
        dead = []
        for entry in os.listdir(folder):
            path = os.path.join(folder, entry)
            status = os.lstat(path)
            domid = _LOG_NAME.match(entry)
            if domid is None or not stat.S_ISREG(status.st_mode):
                continue
            if domains.vm_of(store, int(domid.group(1))):
                _cut(store, path, status.st_size)
            else:
                dead.append((status.st_mtime, status.st_size, path))
    _remove_old(dead)


def _begin(store: Store) -> None:
    os.makedirs(place.path(os.path.dirname(PATTERN)), mode=0o755, exist_ok=True)
    store.write(EVERY_LOG, PATTERN.encode("ascii"))


def _log_of(store: Store, domid: int) -> str:
    """Return where a domain's console is logged. Raises Unsupported."""
    path = store.text(_ONE_LOG % domid) or store.text(EVERY_LOG).replace("%d", str(domid))
    if not path:
        raise Unsupported(
            "Guests' consoles are not logged on this host. `xe host-call-plugin host-uuid=... plugin=vmops-console "
            "fn=enable` begins with it."
        )
    clean = os.path.normpath(path)
    root = place.path("/")
    if root != "/" and clean.startswith(root):
        clean = "/" + clean[len(root) :].lstrip("/")
    if not clean.startswith(_LOG_FOLDER):
        raise Unsupported("XenStore names a console log outside %s: %s." % (_LOG_FOLDER, ascii(clean)))
    return clean


def _cut(store: Store, path: str, size: int) -> None:
    """Keep the end of a log that is too long; the daemon opens the new file when the pattern is written again."""
    if size <= MOST_BYTES:
        return
    with open(path, "rb") as file:
        file.seek(-KEPT_BYTES, os.SEEK_END)
        kept = file.read()
    new = path + ".new"
    with open(new, "wb") as file:
        file.write(kept.partition(b"\n")[2] or kept)
    os.rename(new, path)
    store.write(EVERY_LOG, store.text(EVERY_LOG).encode("utf-8"))


def _remove_old(logs: "list[tuple[float, int, str]]") -> None:
    room = ALL_BYTES
    for changed_s, size, path in sorted(logs, reverse=True):
        room -= size
        if room < 0 or time.time() - changed_s > KEPT_S:
            os.unlink(path)


FUNCTIONS = {
    "tail": Function(tail, domains.NEEDS, ("bytes",), deadline_s=30),
    "enable": Function(enable, deadline_s=20),
    "disable": Function(disable, deadline_s=20),
}
