"""Uuids, references and other made-up numbers, the same for the same seed."""

from __future__ import annotations

import hashlib
import random
import uuid


class Ids:
    """A source of identifiers. `boots` keeps a restarted pool from repeating itself."""

    def __init__(self, seed: int, boots: int) -> None:
        self.random = random.Random(f"{seed}/{boots}")  # noqa: S311 - a simulation, repeatable on purpose

    def uuid(self) -> str:
        """Return a fresh uuid."""
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def ref(self) -> str:
        """Return a fresh reference, unrelated to any uuid."""
        return f"OpaqueRef:{self.uuid()}"

    def generation_id(self) -> str:
        """Return a VM's generation id."""
        return f"{self.random.getrandbits(63)}:{self.random.getrandbits(63)}"


def mac_address(seed: str, device: int) -> str:
    """Return the MAC that XAPI derives from a VM's mac_seed (xapi.md 6.5, vectors in appendix A)."""
    digest = hashlib.md5(seed.encode(), usedforsecurity=False).digest()
    for _round in range(2 * device):
        digest = hashlib.md5(digest, usedforsecurity=False).digest()
    second = hashlib.md5(digest, usedforsecurity=False).digest()
    octets = [*digest[:4], *second[1:3]]
    octets[0] = (octets[0] | 2) & ~1
    return ":".join(f"{octet:02x}" for octet in octets)
