"""The tar of an exported VM, as a stream in both directions and in constant memory (xapi.md 10.4).

A disk is a folder of blocks of 1 MiB, `Ref:3/00000000` and so on, each followed by the file of its checksum. Blocks of
zeros are left out, except the first and the last, and one in every 10 GiB of them.
"""

from __future__ import annotations

import hashlib
import importlib
import tarfile
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Protocol

from simulator.core.failures import Failure
from simulator.storage.content import is_zero

BLOCK = 1 << 20
#: The longest run of zero blocks that is left out.
LONGEST_GAP = 10 * 1024
_RECORD = 512
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_READ = 1 << 16

Send = Callable[[bytes | memoryview], None]


class Source(Protocol):
    """A stream that is read forward."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


def premature_end() -> Failure:
    """Return the failure of a stream that ends early."""
    return Failure("IMPORT_ERROR_PREMATURE_EOF")


# -- writing


class Writer:
    """Writes the members of a tar."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Write one file."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self._send(info.tobuf(tarfile.USTAR_FORMAT))
        self._send(data)
        self._send(bytes(-len(data) % _RECORD))

    def add_disk(self, folder: str, pieces: Iterator[memoryview], size: int) -> None:
        """Write a disk's blocks from its raw content."""
        last = max(0, -(-size // BLOCK) - 1)
        number, written = 0, -1
        for piece in pieces:
            for start in range(0, len(piece), BLOCK):
                block = piece[start : start + BLOCK]
                if number in (0, last) or number - written > LONGEST_GAP or not is_zero(block):
                    self._add_block(f"{folder}/{number:08d}", block)
                    written = number
                number += 1

    def _add_block(self, name: str, block: memoryview) -> None:
        self.add(name, block)
        digest = hashlib.sha1(block, usedforsecurity=False).hexdigest()
        self.add(f"{name}.checksum", digest.encode())

    def end(self) -> None:
        """Write the end of the tar."""
        self._send(bytes(2 * _RECORD))


class Gzip:
    """Compresses what it is given; `end` must be called."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._packer = zlib.compressobj(1, zlib.DEFLATED, 31)

    def __call__(self, data: bytes | memoryview) -> None:
        """Compress and send."""
        packed = self._packer.compress(data)
        if packed:
            self._send(packed)

    def end(self) -> None:
        """Send the rest."""
        self._send(self._packer.flush())


# -- reading


class _Plain:
    """A source with its first bytes given back."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._source.read(size)


class _Gunzip:
    """Unpacks a source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._unpacker = zlib.decompressobj(31)
        self._left = b""

    def read(self, size: int, /) -> bytes:
        while not self._unpacker.eof:
            packed = self._left or self._source.read(_READ)
            if not packed:
                return b""
            try:
                data = self._unpacker.decompress(packed, size)
            except zlib.error as error:
                raise Failure("IMPORT_ERROR", f"the compressed stream is broken: {error}") from None
            self._left = self._unpacker.unconsumed_tail
            if data:
                return data
        return b""


def opened(source: Source) -> Source:
    """Return a stream unpacked, if it is packed. Raises IMPORT_ERROR for zstd, IMPORT_ERROR_PREMATURE_EOF."""
    head = b""
    while len(head) < len(_ZSTD):
        data = source.read(len(_ZSTD) - len(head))
        if not data:
            raise premature_end()
        head += data
    plain = _Plain(head, source)
    if head == _ZSTD:
        raise Failure("IMPORT_ERROR", "the stream is compressed with zstd, which this host cannot unpack")
    return _Gunzip(plain) if head.startswith(_GZIP) else plain


class Reader:
    """Reads the members of a tar one after the other."""

    def __init__(self, source: Source, check: Callable[[], None]) -> None:
        self._source = source
        self._check = check
        self._padding = 0

    def next(self) -> tuple[str, int] | None:
        """Return name and size of the next file, or None at the tar's end; its content must be taken then.

        Raises IMPORT_ERROR_PREMATURE_EOF, IMPORT_ERROR.
        """
        self._check()
        self._take(self._padding)
        self._padding = 0
        header = self._take(_RECORD)
        if header == bytes(_RECORD):
            return None
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError):
            raise Failure("IMPORT_ERROR", "the stream is no tar") from None
        if info.size < 0 or not info.isreg():
            raise Failure("IMPORT_ERROR", f"{info.name} is no plain file")
        self._padding = -info.size % _RECORD
        return info.name, info.size

    def content(self, size: int, most: int) -> bytes:
        """Return the content of the file that `next` named. Raises IMPORT_ERROR above `most` bytes."""
        if size > most:
            raise Failure("IMPORT_ERROR", f"a file of {size} bytes is too large to be one of an export")
        return self._take(size)

    def _take(self, size: int) -> bytes:
        if not size:
            return b""
        buffer = bytearray()
        while len(buffer) < size:
            data = self._source.read(size - len(buffer))
            if not data:
                raise premature_end()
            buffer += data
        return bytes(buffer)


def is_checksum(name: str) -> bool:
    """Tell whether a file is the checksum of the block before it."""
    return name.endswith((".checksum", ".xxhash"))


def assert_checksum(name: str, data: bytes, text: bytes) -> None:
    """Raise IMPORT_ERROR_SOME_CHECKSUMS_FAILED unless a block is what its checksum says.

    `.checksum` is SHA-1; `.xxhash` is XXH64 and can be verified where the package `xxhash` is installed.
    """
    wanted = text.strip().decode("ascii", "replace").lower()
    if name.endswith(".checksum"):
        found = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    elif find_spec("xxhash") is not None:
        found = importlib.import_module("xxhash").xxh64(data).hexdigest()
        wanted = wanted.rjust(len(found), "0")
    else:
        return
    if found != wanted:
        raise Failure("IMPORT_ERROR_SOME_CHECKSUMS_FAILED")
