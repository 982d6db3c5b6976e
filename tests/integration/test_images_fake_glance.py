"""The fake Glance answers as the real one; `tests/glance` runs the same on the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.glance_protocol import GlanceProtocol, Speaker
from tests.support.fake_glance import FakeGlance


@pytest.fixture(scope="module")
def glance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGlance]:
    with FakeGlance(tmp_path_factory.mktemp("glance")) as server:
        yield server


class TestFakeGlance(GlanceProtocol):
    @pytest.fixture
    def glance_url(self, glance: FakeGlance) -> str:
        return glance.url


def test_what_was_stored_survives_a_kill(tmp_path_factory: pytest.TempPathFactory) -> None:
    with FakeGlance(tmp_path_factory.mktemp("glance")) as glance:
        speak = Speaker(glance.url)
        image_id, deleted = speak.new(), speak.new()
        speak.put(image_id, b"data")
        speak("DELETE", f"/v2/images/{deleted}")
        glance.kill()
        glance.start()
        assert speak.show(image_id)["status"] == "active"
        assert speak("GET", f"/v2/images/{image_id}/file").body == b"data"
        assert speak("POST", "/v2/images", {"name": "a", "id": deleted}).status == 409


def test_calls_are_counted_by_name(glance: FakeGlance) -> None:
    glance.reset()
    speak = Speaker(glance.url)
    image_id = speak.new()
    speak.put(image_id, b"x")
    speak.show(image_id)
    assert glance.log() == ["create", "upload", "show"]
    assert glance.calls() == {"create": 1, "upload": 1, "show": 1}


def test_a_fault_strikes_the_call_and_the_time_it_was_made_for(glance: FakeGlance) -> None:
    glance.reset()
    speak = Speaker(glance.url)
    image_id = speak.new()
    glance.fault("sh*", "status", nth=2, times=2, status=503)
    assert [speak("GET", f"/v2/images/{image_id}").status for _ in range(5)] == [200, 503, 503, 200, 200]
