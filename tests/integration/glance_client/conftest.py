"""A client of the fake Glance, and little patience."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.images_contract import new_image
from tests.support.fake_glance import FakeGlance
from worker import retry
from worker.images import glance as glance_module
from worker.images import push as push_module
from worker.images.glance import GlanceStore
from worker.retry import Backoff


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGlance]:
    with FakeGlance(tmp_path_factory.mktemp("glance")) as server:
        yield server


@pytest.fixture
def glance(server: FakeGlance) -> Iterator[FakeGlance]:
    """The fake without faults, counts and token."""
    server.reset()
    yield server
    server.settings(token=None, capacity=None)


@pytest.fixture
def store(glance: FakeGlance) -> GlanceStore:
    return GlanceStore(glance.url)


@pytest.fixture
def image_id(store: GlanceStore) -> str:
    return new_image(store, None, None)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses; their number and reasons stay."""
    monkeypatch.setattr(retry, "SHORT", Backoff(first_s=0.01, longest_s=0.05))
    monkeypatch.setattr(glance_module, "SETTLE_CHECK_S", 0.02)
    monkeypatch.setattr(push_module, "SETTLE_S", 0.2)
    monkeypatch.setattr(push_module, "SETTLE_CHECK_S", 0.02)
