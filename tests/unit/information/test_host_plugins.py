"""Hosts whose release cannot run the plugins are told from those that lack them."""

from __future__ import annotations

import pytest

from tasks.information.hosts import _is_too_old
from worker.cli.doctor import _host


@pytest.mark.parametrize(
    ("brand", "version", "is_too_old"),
    [
        ("XCP-ng", "8.2.1", True),
        ("XCP-ng", "7.6.0", True),
        ("XCP-ng", "8.3.0", False),
        ("XCP-ng", "9.0", False),
        ("XCP-ng", "10.1.0", False),
        ("XenServer", "8.2.0", False),
        ("", "", False),
    ],
)
def test_a_release_with_python_2_alone_is_known(brand: str, version: str, *, is_too_old: bool) -> None:
    software = {"product_brand": brand, "product_version": version}
    assert _is_too_old({"software_version": software}) is is_too_old


def test_nobody_is_told_to_install_where_it_is_impossible() -> None:
    host = {"name": "h", "address": "10.0.0.1", "state": "impossible", "version": None, "problem": None}
    found = _host("lab", host)
    assert (found.level, found.advice) == ("note", "Upgrade the host to XCP-ng 8.3 or later.")
