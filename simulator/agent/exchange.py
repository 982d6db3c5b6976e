"""The guest's side of the key exchange, and of the cipher that passwords come in (dom0-and-guest.md 6.4, 6.5)."""

from __future__ import annotations

import hashlib
import secrets

PRIME = 162259276829213363391578010288127
BASE = 5
BLOCK = 16


class Exchange:
    """What one `keyinit` leaves in an agent: the number for the other side, and the key for one password."""

    def __init__(self, theirs: int, private: int) -> None:
        self.public = pow(BASE, private, PRIME)
        shared = str(pow(theirs, private, PRIME)).encode()
        self._key = hashlib.md5(shared).digest()  # noqa: S324 - the protocol's
        self._start = hashlib.md5(self._key + shared).digest()  # noqa: S324 - as above

    @classmethod
    def fresh(cls, theirs: int, bits: int) -> Exchange:
        """Answer the other side's number with a new private one of so many bits."""
        return cls(theirs, secrets.randbits(bits) | 1)

    def decrypt(self, data: bytes) -> bytes:
        """Return what whole blocks hold, padding included. Raises ValueError for anything else."""
        # Slow to import, and most pools see no password.
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415

        if len(data) % BLOCK:
            raise ValueError("the text is not of whole blocks")
        decryptor = Cipher(algorithms.AES128(self._key), modes.CBC(self._start)).decryptor()
        return decryptor.update(data) + decryptor.finalize()
