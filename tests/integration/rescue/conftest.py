"""One ward for all tests here."""

from __future__ import annotations

from tests.integration.power.conftest import package_ward

__all__ = ["package_ward"]
