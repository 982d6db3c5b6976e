"""Exports and watches for pushes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Literal

from tests.support import vhd_files
from worker.images.push import MARK, PushPlan

MIB = 1 << 20
DISK = 21 * MIB
BLOCKS = vhd_files.some_blocks(11, 0, 1, 4, 10)
VHD = vhd_files.vhd(DISK, BLOCKS)
#: What an image must hold: the same with the creator whose size every reader believes.
PATCHED = vhd_files.footer(DISK, creator=b"tap\0") + VHD[512:-512] + vhd_files.footer(DISK, creator=b"tap\0")
RAW = vhd_files.raw(DISK, BLOCKS)


class Export:
    """An export as `worker.xenapi.transfer` gives it: bytes, then the pool's word."""

    def __init__(
        self,
        data: bytes = VHD,
        most: int = 3 * MIB,
        breaks: BaseException | None = None,
        verdict: BaseException | None = None,
        on_confirm: Callable[[], None] | None = None,
    ) -> None:
        self._file, self._most, self._breaks = io.BytesIO(data), most, breaks
        self._verdict, self._on_confirm = verdict, on_confirm
        self.reads = self.confirms = 0

    def readinto(self, buffer: memoryview, /) -> int:
        self.reads += 1
        got = self._file.readinto(buffer[: self._most])
        if got == 0 and self._breaks is not None:
            raise self._breaks
        return got

    def confirm(self) -> None:
        self.confirms += 1
        if self._on_confirm is not None:
            self._on_confirm()
        if self._verdict is not None:
            raise self._verdict


class Watch:
    """Follows a push; stops it at the check number `stop_at`."""

    def __init__(self, stop_at: int | None = None, reason: BaseException | None = None) -> None:
        self.reports: list[tuple[int, int | None]] = []
        self.checks = 0
        self._stop_at, self._reason = stop_at, reason

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        self.reports.append((done_bytes, total_bytes))

    def check(self) -> None:
        self.checks += 1
        if self._reason is not None and self.checks == self._stop_at:
            raise self._reason


def plan(
    image_format: Literal["vhd", "raw", "bundle"] = "vhd",
    mark: str = "op-1",
    virtual_size: int = DISK,
    wedged_after_s: float = 7200,
) -> PushPlan:
    properties = {MARK: mark, "os_type": "linux", "image_type": "snapshot"}
    return PushPlan(image_format, properties, virtual_size, wedged_after_s=wedged_after_s)
