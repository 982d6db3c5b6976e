"""The contract of image stores, held by the directory and by the Glance client against the fake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.images_contract import ImageStoreContract
from tests.support.fake_glance import FakeGlance


@pytest.fixture(scope="module")
def glance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGlance]:
    with FakeGlance(tmp_path_factory.mktemp("glance")) as server:
        yield server


class TestDirectory(ImageStoreContract):
    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/images"


class TestGlance(ImageStoreContract):
    @pytest.fixture
    def address(self, glance: FakeGlance) -> str:
        return f"glance+{glance.url}"
