"""The key exchange and the cipher of the agents in the field (operations.md 5.7, dom0-and-guest.md 6.4, 6.5).

It keeps a password out of logs and nothing more: the group has 107 bits and nobody proves who he is. Whoever can read
XenStore or the traffic with XAPI computes the key within seconds.
"""

from __future__ import annotations

import hashlib
import secrets
from base64 import b64decode, b64encode

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

_PRIVATE_BYTES = 10


class SimpleDH:
    """One side of a key exchange, and the cipher with the secret that both sides then have."""

    prime = 162259276829213363391578010288127
    """2**107 - 1."""
    base = 5

    def __init__(self, private: int | None = None) -> None:
        """Draw a private key, or take the given one: any positive number."""
        self._private = private or self.generate_private()
        self._public: int | None = None
        self._shared: int | None = None

    def generate_private(self) -> int:
        """Draw a new private key of 80 random bits, keep and return it."""
        self._private = int.from_bytes(secrets.token_bytes(_PRIVATE_BYTES)) or 1
        return self._private

    def get_public(self) -> int:
        """Return what the other side needs to know."""
        self._public = self.mod_exp(self.base, self._private, self.prime)
        return self._public

    def compute_shared(self, other: int) -> int:
        """Compute, keep and return the common secret from the other side's public key."""
        self._shared = self.mod_exp(other, self._private, self.prime)
        return self._shared

    @staticmethod
    def mod_exp(num: int, exp: int, mod: int) -> int:
        """Return `num` to the power of `exp`, modulo `mod`."""
        return pow(num, exp, mod) if exp else 1

    def encrypt(self, text: str) -> str:
        """Return the text's cipher in base64, on one line. Raises RuntimeError before there is a common secret."""
        padder = PKCS7(algorithms.AES.block_size).padder()
        padded = padder.update(text.encode()) + padder.finalize()
        encryptor = self._cipher().encryptor()
        return b64encode(encryptor.update(padded) + encryptor.finalize()).decode("ascii")

    def decrypt(self, text: str) -> str:
        """Return the text of a cipher in base64, line feeds and all.

        Raises RuntimeError for what was not made with the common secret, and before there is one.
        """
        decryptor = self._cipher().decryptor()
        unpadder = PKCS7(algorithms.AES.block_size).unpadder()
        try:
            padded = decryptor.update(b64decode(text)) + decryptor.finalize()
            return (unpadder.update(padded) + unpadder.finalize()).decode()
        except ValueError:
            raise RuntimeError("the text was not encrypted with the common secret") from None

    def _cipher(self) -> Cipher[modes.CBC]:
        """Return AES-128-CBC with key and start made of the secret as `openssl enc -nosalt -md md5` makes them."""
        if self._shared is None:
            raise RuntimeError("there is no common secret yet: compute_shared comes first")
        passphrase = str(self._shared).encode("ascii")
        key = hashlib.md5(passphrase, usedforsecurity=False).digest()
        start = hashlib.md5(key + passphrase, usedforsecurity=False).digest()
        return Cipher(algorithms.AES(key), modes.CBC(start))
