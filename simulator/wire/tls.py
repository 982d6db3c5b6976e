"""A self-signed certificate as XAPI makes one at installation: RSA 2048, made here without any library.

Key and certificate lie in the state directory, so that a pool keeps its fingerprint.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import math
import secrets
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

_PUBLIC_EXPONENT = 65537
_PRIME_BITS = 1024
_ROUNDS = 8
_VALID_DAYS = 3650
_SMALL_PRIMES = [number for number in range(3, 2000, 2) if all(number % other for other in range(3, number, 2))]
_SMALL_PRODUCT = math.prod(_SMALL_PRIMES)

#: In DER: a length of several bytes follows.
_LONG_FORM = 0x80

_SHA256_RSA = bytes.fromhex("300d06092a864886f70d01010b0500")
_RSA_KEY = bytes.fromhex("300d06092a864886f70d0101010500")
_COMMON_NAME = bytes.fromhex("0603550403")
_SHA256_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")


def server_context(folder: Path, addresses: Sequence[str] = ("127.0.0.1",)) -> ssl.SSLContext:
    """Return a server's TLS settings with the certificate in `folder`, made for `addresses` if it is not there yet."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if not certificate.exists() or not key.exists():
        key.touch(mode=0o600)
        modulus, private = _new_key()
        key.write_text(_pem("RSA PRIVATE KEY", private), encoding="ascii")
        certificate.write_text(_pem("CERTIFICATE", _certificate(modulus, private, addresses)), encoding="ascii")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


# -- DER


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < _LONG_FORM:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, _LONG_FORM | len(length)]) + length + content


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _sequence(*parts: bytes) -> bytes:
    return _der(0x30, b"".join(parts))


def _bits(content: bytes) -> bytes:
    return _der(0x03, b"\x00" + content)


def _name(text: str) -> bytes:
    return _sequence(_der(0x31, _sequence(_COMMON_NAME, _der(0x0C, text.encode()))))


def _time(moment: datetime) -> bytes:
    return _der(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())


def _pem(label: str, der: bytes) -> str:
    text = base64.b64encode(der).decode()
    lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


# -- RSA


def _is_prime(number: int) -> bool:
    if math.gcd(number, _SMALL_PRODUCT) != 1:
        return False
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd //= 2
        twos += 1
    return all(_is_witnessed(number, odd, twos) for _round in range(_ROUNDS))


def _is_witnessed(number: int, odd: int, twos: int) -> bool:
    """Run one round of Miller and Rabin's test."""
    value = pow(secrets.randbelow(number - 3) + 2, odd, number)
    if value in (1, number - 1):
        return True
    for _square in range(twos - 1):
        value = value * value % number
        if value == number - 1:
            return True
    return False


def _prime() -> int:
    top = 3 << (_PRIME_BITS - 2)
    while True:
        number = top | secrets.randbits(_PRIME_BITS) | 1
        if math.gcd(number - 1, _PUBLIC_EXPONENT) == 1 and _is_prime(number):
            return number


def _new_key() -> tuple[int, bytes]:
    """Return the modulus and the private key (PKCS #1)."""
    first, second = _prime(), _prime()
    modulus = first * second
    exponent = pow(_PUBLIC_EXPONENT, -1, math.lcm(first - 1, second - 1))
    parts = (0, modulus, _PUBLIC_EXPONENT, exponent, first, second, exponent % (first - 1), exponent % (second - 1))
    return modulus, _sequence(*(_integer(part) for part in (*parts, pow(second, -1, first))))


def _private_exponent(key: bytes) -> int:
    """Return the private exponent of a PKCS #1 key: its fourth integer."""
    values: list[int] = []
    position = 4
    while len(values) < 4:  # noqa: PLR2004 - version, modulus, public and private exponent
        size = key[position + 1]
        start = position + 2
        if size & _LONG_FORM:
            count = size ^ _LONG_FORM
            size = int.from_bytes(key[start : start + count], "big")
            start += count
        values.append(int.from_bytes(key[start : start + size], "big"))
        position = start + size
    return values[3]


def _certificate(modulus: int, key: bytes, addresses: Sequence[str]) -> bytes:
    now = datetime.now(UTC)
    public = _sequence(_RSA_KEY, _bits(_sequence(_integer(modulus), _integer(_PUBLIC_EXPONENT))))
    body = _sequence(
        _der(0xA0, _integer(2)),
        _integer(secrets.randbits(63)),
        _SHA256_RSA,
        _name("simulated-pool"),
        _sequence(_time(now - timedelta(days=1)), _time(now + timedelta(days=_VALID_DAYS))),
        _name("simulated-pool"),
        public,
        _extensions(addresses),
    )
    return _sequence(body, _SHA256_RSA, _bits(_signature(body, modulus, _private_exponent(key))))


def _extensions(addresses: Sequence[str]) -> bytes:
    """Return the extensions: an authority of itself, good for localhost and the hosts' addresses."""
    basic = _sequence(bytes.fromhex("0603551d13"), b"\x01\x01\xff", _der(0x04, _sequence(b"\x01\x01\xff")))
    every = dict.fromkeys([ipaddress.ip_address("127.0.0.1"), *_numeric(addresses)])
    names = _sequence(_der(0x82, b"localhost"), *(_der(0x87, one.packed) for one in every))
    alternative = _sequence(bytes.fromhex("0603551d11"), _der(0x04, names))
    usage = _sequence(bytes.fromhex("0603551d0f"), b"\x01\x01\xff", _der(0x04, bytes.fromhex("030202a4")))
    return _der(0xA3, _sequence(basic, usage, alternative))


def _numeric(addresses: Sequence[str]) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    for address in addresses:
        with contextlib.suppress(ValueError):
            yield ipaddress.ip_address(address)


def _signature(body: bytes, modulus: int, exponent: int) -> bytes:
    digest = _SHA256_PREFIX + hashlib.sha256(body).digest()
    size = (modulus.bit_length() + 7) // 8
    padded = b"\x00\x01" + b"\xff" * (size - len(digest) - 3) + b"\x00" + digest
    return pow(int.from_bytes(padded, "big"), exponent, modulus).to_bytes(size, "big")
