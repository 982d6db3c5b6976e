"""One ward for all tests of this process, as the power operations have it."""

from __future__ import annotations

from tests.integration.power.conftest import session_ward, ward

__all__ = ["session_ward", "ward"]
