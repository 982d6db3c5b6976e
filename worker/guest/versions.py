"""The order of the agents' versions (operations.md 5.1)."""

from __future__ import annotations


def cmp_version(a: str, b: str) -> int:
    """Compare dotted numeric versions: negative when `a` is the older, 0 when they are equal, positive otherwise.

    Parts are compared as numbers; of two versions that differ only in length the shorter one is the older. Raises
    ValueError for a part that is no number.
    """
    ours, theirs = ([int(part) for part in one.split(".")] for one in (a, b))
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            return mine - other
    return len(ours) - len(theirs)


def is_older(version: str, wanted: str) -> bool:
    """Tell whether a version is older than the wanted one; False for what is no version (dom0-and-guest.md 6.9)."""
    try:
        return cmp_version(version, wanted) < 0
    except ValueError:
        return False
