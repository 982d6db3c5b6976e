"""A disk's content: its chain of files read as one, leaf first."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.storage.vhd import BLOCK, SECTOR
from simulator.storage.vhdfile import VhdFile, mask, runs

ZEROS = bytes(BLOCK)

Chain = Sequence[VhdFile]


def is_allocated(chain: Chain, block: int) -> bool:
    """Whether any file of the chain has the block; when none has, it reads as zeros."""
    return any(file.is_allocated(block) for file in chain)


def is_zero(data: memoryview) -> bool:
    """Whether at most a block of bytes is all zeros; one memcmp that ends at the first difference."""
    return ZEROS.startswith(data)


def read_block(chain: Chain, block: int, first: int, view: memoryview) -> None:
    """Fill the view with whole sectors of one block, from sector `first` on: each from the first file that has it."""
    wanted = mask(first, len(view) // SECTOR)
    for file in chain:
        if not file.is_allocated(block):
            continue
        have = file.bits(block) & wanted
        if have == wanted and have == mask(first, len(view) // SECTOR):
            file.read(block, first, view)
            return
        if have:
            file.read_runs(block, have, first, view)
            wanted &= ~have
            if not wanted:
                return
    for start, count in runs(wanted):
        at = (start - first) * SECTOR
        view[at : at + count * SECTOR] = ZEROS[: count * SECTOR]


def read(chain: Chain, offset: int, view: memoryview) -> None:
    """Fill the view with whole sectors from a byte offset on (a multiple of 512)."""
    while view:
        block, inside = divmod(offset, BLOCK)
        count = min(BLOCK - inside, len(view))
        read_block(chain, block, inside // SECTOR, view[:count])
        view = view[count:]
        offset += count


def used_blocks(files: Sequence[VhdFile], entries: int) -> list[int]:
    """List the blocks below `entries` that any of the files has, ascending."""
    used: set[int] = set()
    for file in files:
        if file.used_blocks:
            used.update(block for block in range(min(entries, len(file.bat))) if file.is_allocated(block))
    return sorted(used)
