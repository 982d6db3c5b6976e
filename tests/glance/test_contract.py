"""The contract of image stores against a real Glance (`make test-glance`)."""

from __future__ import annotations

import pytest

from tests.integration.images_contract import ImageStoreContract
from tests.support.real_glance import RealGlance

pytestmark = [pytest.mark.glance, pytest.mark.timeout(120)]


class TestRealGlance(ImageStoreContract):
    @pytest.fixture
    def address(self, real_glance: RealGlance) -> str:
        return f"glance+{real_glance.url}"
