"""Sealed secrets: anybody can close the box with the workers' public key, only workers can open it (PyNaCl)."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from worker.errors import PermanentError, RequestError


def make_private_key() -> str:
    """Return a new private key as 64 hex digits, the content of `secret_key_file`."""
    return PrivateKey.generate().encode().hex()


def read_private_key(path: Path) -> PrivateKey:
    """Read `secret_key_file`. Raises ValueError when it is not 64 hex digits."""
    try:
        return PrivateKey(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except (OSError, ValueError, TypeError, CryptoError) as error:
        raise ValueError(f"{path} must hold 64 hex digits (a private key): {type(error).__name__}") from error


def seal(public_key: str, text: str) -> str:
    """Close `text` for the owner of `public_key` (64 hex digits). Raises RequestError on a bad key."""
    try:
        box = SealedBox(PublicKey(bytes.fromhex(public_key)))
    except (ValueError, TypeError, CryptoError):
        raise RequestError("The workers' public key is not 64 hex digits.") from None
    return b64encode(box.encrypt(text.encode())).decode()


def unseal(private_key: PrivateKey, sealed: str) -> str:
    """Open a sealed secret. Raises PermanentError when it was sealed for another key."""
    try:
        return SealedBox(private_key).decrypt(b64decode(sealed, validate=True)).decode()
    except (ValueError, CryptoError):
        raise PermanentError(
            "A sealed secret of the request cannot be opened: it was sealed for another key."
        ) from None


def derive(private_key: PrivateKey, purpose: str) -> bytes:
    """Return 32 bytes that only owners of the key can compute, always the same for one purpose."""
    return hmac.digest(private_key.encode(), b"vmops derived secret: " + purpose.encode(), "sha256")
