"""Kernel and ramdisk files in the dom0 of hosts, for paravirtual guests that do not boot from their disk.

A file goes there in parts that fit into calls of the `vmops-kernel` plugin: it needs no storage that the host can reach
and leaves no disk plugged into dom0 when a worker dies, and these files are a few MiB. Its name holds the image's id
and the content's SHA-256: what is there is right, is not sent again, and what was begun is gone on with.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from worker.errors import PluginFailed
from worker.xenapi import plugin
from worker.xenapi.session import Session

PLUGIN = "vmops-kernel"
#: Base64 of this fits into a call.
PART_BYTES = 96_000
_AT_ONCE = 4
#: As the plugin names them.
_FOLDER = "/boot/guest"
_PATH = re.compile(rf"{_FOLDER}/vmops-(?P<image_id>[A-Za-z0-9][A-Za-z0-9_-]{{0,63}})-(?P<sha256>[0-9a-f]{{64}})")
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class KernelFile:
    """One file: whose it is and what is in it."""

    image_id: str
    sha256: str
    size: int

    @property
    def key(self) -> dict[str, str]:
        """The arguments that name it."""
        return {"image_id": self.image_id, "sha256": self.sha256}

    @property
    def path(self) -> str:
        """Where the file is in dom0."""
        return f"{_FOLDER}/vmops-{self.image_id}-{self.sha256}"


def named(path: str) -> KernelFile | None:
    """Return the file of ours that a VM's record names (its size is not known), None for somebody else's."""
    match = _PATH.fullmatch(path)
    return KernelFile(match["image_id"], match["sha256"], 0) if match else None


def describe(image_id: str, file: BinaryIO) -> KernelFile:
    """Read a file to its end and return what it is."""
    digest, size = hashlib.sha256(), 0
    file.seek(0)
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
        size += len(block)
    return KernelFile(image_id, digest.hexdigest(), size)


def put(
    session: Session, host_refs: Sequence[str], wanted: KernelFile, file: BinaryIO, check: Callable[[], None]
) -> str:
    """Bring a file to hosts where it is not yet; return the path that VM.PV_kernel or PV_ramdisk takes.

    `check` is called before each part, and raises to stop it. Safe to repeat: it goes on where it was left. Raises what
    `plugin.call` raises; PluginFailed when a host does not take the file.
    """
    parts = _Parts(file)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        paths = list(threads.map(partial(_put, session, wanted, parts, check), host_refs))
    return paths[0]


def remove(session: Session, host_refs: Sequence[str], wanted: KernelFile) -> int:
    """Remove a file from hosts; return how many had it. Raises what `plugin.call` raises."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        ask = partial(_call, session, fn="remove", args=wanted.key)
        return sum(bool(answer["removed"]) for answer in threads.map(ask, host_refs))


def verify(session: Session, host_ref: str, wanted: KernelFile) -> bool:
    """Tell whether a host has the file, read anew. Raises what `plugin.call` raises."""
    return bool(_call(session, host_ref, "verify", wanted.key)["complete"])


def on_host(session: Session, host_ref: str) -> list[KernelFile]:
    """Return the files that a host has. Raises what `plugin.call` raises."""
    found = _call(session, host_ref, "list", {})["files"]
    return [KernelFile(str(one["image_id"]), str(one["sha256"]), int(one["size"])) for one in found]


class _Parts:
    """A file that several threads read, each where it likes."""

    def __init__(self, file: BinaryIO) -> None:
        file.seek(0)
        self._content = file.read()

    def at(self, offset: int) -> str:
        return b64encode(self._content[offset : offset + PART_BYTES]).decode("ascii")


def _put(session: Session, wanted: KernelFile, parts: _Parts, check: Callable[[], None], host_ref: str) -> str:
    """Send one host what it lacks. The first question names the end, so that a host with nothing says so."""
    size = str(wanted.size)
    args = {**wanted.key, "size": size, "offset": size, "data_b64": ""}
    state = _call(session, host_ref, "put", args)
    for _ in range(2 * wanted.size // PART_BYTES + 4):  # twice: another worker may send it, too
        if state["complete"]:
            return str(state["path"])
        check()
        offset = int(state["received"])
        args |= {"offset": str(offset), "data_b64": parts.at(offset)}
        state = _call(session, host_ref, "put", args)
    raise PluginFailed(f"A host does not take the file of image {wanted.image_id}: nothing more arrives there.")


def _call(session: Session, host_ref: str, fn: str, args: dict[str, str]) -> Any:
    return plugin.call(session, host_ref, PLUGIN, fn, args)
