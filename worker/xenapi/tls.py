"""Trust: a pool's certificates are checked against a CA file, against pinned SHA-256 fingerprints, or against both.

Hosts of XCP-ng and XenServer sign their own certificates for whatever name they had at installation, so a pin decides
without looking at names; with a CA file the name is checked as well.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from worker.errors import CertificateMismatch, PermanentError, PoolUnreachable
from worker.xenapi.address import Address

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_PROBE_TIMEOUT_S = 5.0


class TlsPolicy:
    """Whom a pool's connections trust."""

    def __init__(self, pool_name: str, ca_file: Path | None, fingerprints: Iterable[str]) -> None:
        """Read the CA file. Raises PermanentError when it, or a fingerprint, cannot be used."""
        self._pool_name = pool_name
        self._pins = frozenset(_normal_fingerprint(pool_name, text) for text in fingerprints)
        self._context = _context(pool_name, ca_file)

    def wrap(self, sock: socket.socket, address: Address) -> ssl.SSLSocket:
        """Shake hands over a connected socket; a failure closes it. Raises CertificateMismatch, PoolUnreachable."""
        try:
            wrapped = self._context.wrap_socket(sock, server_hostname=address.host)
        except ssl.SSLCertVerificationError as error:
            seen = _seen_fingerprint(address) or "unknown"
            raise CertificateMismatch(
                f"Pool {self._pool_name!r}: the certificate of {address} is not trusted by ca_file "
                f"({error.verify_message}); its SHA-256 is {seen}. Correct ca_file, or put the host's own "
                f"fingerprint into fingerprints instead.",
            ) from error
        except ssl.SSLError as error:
            raise PoolUnreachable(
                f"Pool {self._pool_name!r}: {address} does not complete a TLS handshake ({error.reason or error}). "
                f"Check the port in url, or write http:// if it does not speak TLS.",
            ) from error
        self._check_pin(wrapped, address)
        return wrapped

    def _check_pin(self, wrapped: ssl.SSLSocket, address: Address) -> None:
        if not self._pins:
            return
        seen = _fingerprint(wrapped)
        if seen in self._pins:
            return
        wrapped.close()
        expected = " or ".join(sorted(self._pins))
        raise CertificateMismatch(
            f"Pool {self._pool_name!r}: the certificate of {address} has SHA-256 {seen}, expected {expected}. If the "
            f"host's certificate was renewed, put the new fingerprint into fingerprints; if not, somebody is between.",
        )


def _normal_fingerprint(pool_name: str, text: str) -> str:
    """Accept colons, blanks, capitals and a `sha256:` prefix."""
    plain = re.sub(r"[:\s]", "", text.lower().removeprefix("sha256:").removeprefix("sha256="))
    if not _SHA256_HEX.fullmatch(plain):
        raise PermanentError(f"Pool {pool_name!r}: the fingerprint {text!r} is not a SHA-256, 64 hex digits.")
    return plain


def _context(pool_name: str, ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        why = error.strerror or "it holds no PEM certificate"
        raise PermanentError(f"Pool {pool_name!r}: ca_file {str(ca_file)!r} cannot be used: {why}.") from error
    return context


def _fingerprint(wrapped: ssl.SSLSocket) -> str:
    return hashlib.sha256(wrapped.getpeercert(binary_form=True) or b"").hexdigest()


def _seen_fingerprint(address: Address) -> str | None:
    """Fetch the certificate that a failed verification kept from us, for the error text only; nothing is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        suppress(OSError),
        socket.create_connection((address.host, address.port), _PROBE_TIMEOUT_S) as sock,
        context.wrap_socket(sock, server_hostname=address.host) as wrapped,
    ):
        return _fingerprint(wrapped)
    return None
