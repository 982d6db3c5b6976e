"""What several storage tests share."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from simulator.storage import VhdRepository

MIB = 1024**2
BLOCK = 2 * MIB

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not on the PATH")
needs_e2fsck = pytest.mark.skipif(shutil.which("e2fsck") is None, reason="e2fsck is not on the PATH")


def pattern(seed: int, length: int) -> bytes:
    """Bytes that do not repeat and that nothing mistakes for zeros."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(length)


def collect_all(repo: VhdRepository) -> list[str]:
    """Run the collector dry; the kinds of what it did."""
    kinds: list[str] = []
    while (done := repo.collect_once()) is not None:
        kinds.append(done.kind)
    return kinds


def raw(repo: VhdRepository, uuid: str) -> bytes:
    """The whole disk."""
    return repo.read(uuid, 0, repo.node(uuid).virtual_size)


def exported(repo: VhdRepository, uuid: str, base: str | None = None) -> bytes:
    """The whole VHD export; its announced length is checked on the way."""
    stream = repo.export(uuid, "vhd", base)
    data = b"".join(stream)
    assert len(data) == stream.length
    return data


def qemu_raw(path: Path, *, force_size: bool = False) -> bytes:
    """What qemu-img makes of a VHD."""
    out = path.with_suffix(".raw")
    source = f"driver=vpc,file.filename={path}" + (",force_size_calc=current_size" if force_size else "")
    subprocess.run(["qemu-img", "convert", "--image-opts", source, "-O", "raw", str(out)], check=True, timeout=60)
    data = out.read_bytes()
    out.unlink()
    return data
