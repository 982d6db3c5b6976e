"""The disks that a flavor asks for."""

from __future__ import annotations

import pytest

from tasks.provision.wishes import ephemeral_sizes_gb


@pytest.mark.parametrize(
    ("total_gb", "sizes"),
    [
        (0, []),
        (20, [20]),
        (1024, [1024]),
        (2000, [2000]),
        (2048, [1024, 1024]),
        (4030, [2000, 2000, 30]),
        (16384, [1024] * 16),
    ],
)
def test_ephemeral_storage_is_cut_as_novas(total_gb: int, sizes: list[int]) -> None:
    assert ephemeral_sizes_gb(total_gb) == sizes
