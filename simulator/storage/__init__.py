"""A file SR without XenAPI: real VHD files, chains, a garbage collector, streams in and out.

    repo = VhdRepository(path, capacity=None)
    create snapshot clone delete resize                 the tree
    nodes node depth children used_bytes                looking at it
    read write sha256                                   content, through the chain
    export import_vhd import_raw                        streams (constant memory)
    collect_once has_work                               the collector, one unit at a time
    close                                               give the folder back

Nothing here knows a XenAPI object: names are uuids, errors are the storage manager's numbers.
"""

from __future__ import annotations

from simulator.storage.ext4 import load_ext4, load_extents
from simulator.storage.guest import GuestWriter
from simulator.storage.model import Collected, ImportBroken, Node, StorageError
from simulator.storage.repository import VhdRepository

__all__ = [
    "Collected",
    "GuestWriter",
    "ImportBroken",
    "Node",
    "StorageError",
    "VhdRepository",
    "load_ext4",
    "load_extents",
]
