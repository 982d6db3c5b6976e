"""The real Glance answers as the fake one says (`make test-glance`)."""

from __future__ import annotations

import pytest

from tests.integration.glance_protocol import GlanceProtocol
from tests.support.real_glance import RealGlance

pytestmark = [pytest.mark.glance, pytest.mark.timeout(120)]


class TestRealGlance(GlanceProtocol):
    @pytest.fixture
    def glance_url(self, real_glance: RealGlance) -> str:
        return real_glance.url
