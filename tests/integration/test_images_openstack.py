"""From a cloud's name in clouds.yaml to Glance, through the libraries of the extra `vmops[openstack]`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.images_contract import new_image, pieces, read_all
from tests.integration.images_support import RAW
from tests.support.fake_glance import FakeGlance
from worker.cli.embedded import free_port
from worker.errors import ImageStoreDenied, ImageStoreUnreachable
from worker.images.store import ImageState, ImageStore, open_store
from worker.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::Warning:(keystoneauth1|openstack|pbr|stevedore).*")

PASSWORD = "pa55-of-the-cloud"


class Keystone(ThreadingHTTPServer):
    """As much of Keystone as a login by password needs."""

    daemon_threads = True

    def __init__(self, glance_url: str) -> None:
        super().__init__(("127.0.0.1", 0), KeystoneHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v3"
        self.glance_url = glance_url
        self.life = timedelta(hours=8)
        self.issued: list[str] = []


class KeystoneHandler(BaseHTTPRequestHandler):
    server: Keystone

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        links = [{"rel": "self", "href": self.server.url}]
        self._answer(200, {"version": {"id": "v3.14", "status": "stable", "links": links}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["auth"]["identity"]["password"]["user"]["password"] != PASSWORD:
            self._answer(401, {"error": {"code": 401, "message": "wrong", "title": "Unauthorized"}})
            return
        token = f"token-{len(self.server.issued) + 1}"
        self.server.issued.append(token)
        now = datetime.now(UTC)
        endpoint = {"interface": "public", "region": "r", "region_id": "r", "id": "e", "url": self.server.glance_url}
        facts = {
            "methods": ["password"],
            "user": {"id": "u", "name": "u", "domain": {"id": "default", "name": "Default"}},
            "project": {"id": "p", "name": "p", "domain": {"id": "default", "name": "Default"}},
            "roles": [{"id": "m", "name": "member"}],
            "issued_at": now.isoformat(),
            "expires_at": (now + self.server.life).isoformat(),
            "catalog": [{"type": "image", "name": "glance", "id": "g", "endpoints": [endpoint]}],
        }
        self._answer(201, {"token": facts}, {"X-Subject-Token": token})

    def _answer(self, status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def glance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGlance]:
    with FakeGlance(tmp_path_factory.mktemp("glance")) as server:
        yield server


@pytest.fixture
def keystone(glance: FakeGlance) -> Iterator[Keystone]:
    glance.reset()
    with Keystone(glance.url) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()
    glance.settings(token=None)


@pytest.fixture
def clouds(tmp_path: Path, keystone: Keystone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clouds.yaml with good and bad clouds."""
    login = {"auth_url": keystone.url, "username": "u", "password": PASSWORD, "project_name": "p"}
    login |= {"user_domain_name": "Default", "project_domain_name": "Default"}
    nowhere = f"http://127.0.0.1:{free_port()}"
    document = {
        "clouds": {
            "good": {"auth": login, "region_name": "r"},
            "open": {"auth_type": "none", "auth": {"endpoint": keystone.glance_url}},
            "refused": {"auth": {**login, "password": "wrong-" + PASSWORD}, "region_name": "r"},
            "away": {"auth": {**login, "auth_url": nowhere}, "region_name": "r"},
            "elsewhere": {"auth": login, "region_name": "no-such-region"},
            "half": {"auth": {"username": "u"}},
        }
    }
    path = tmp_path / "clouds.yaml"
    path.write_text(yaml.safe_dump(document))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))


def cloud(name: str) -> ImageStore:
    return open_store(Settings(image_store=f"cloud:{name}"))


@pytest.mark.usefixtures("clouds")
def test_a_cloud_leads_to_its_glance_with_a_token(glance: FakeGlance, keystone: Keystone) -> None:
    glance.settings(token="token-1")
    store = cloud("good")
    image_id = new_image(store)
    store.upload(image_id, pieces(RAW), len(RAW))
    assert read_all(store, image_id) == RAW
    assert keystone.issued == ["token-1"]


@pytest.mark.usefixtures("clouds")
def test_a_refused_token_is_renewed(glance: FakeGlance, keystone: Keystone) -> None:
    store = cloud("good")
    image_id = new_image(store)
    glance.settings(token="token-2")
    assert store.describe(image_id).state is ImageState.QUEUED
    glance.settings(token="token-3")
    with pytest.raises(ImageStoreUnreachable, match="there is a new one"):
        store.upload(image_id, pieces(RAW))
    assert glance.calls()["upload"] == 1
    assert store.upload(image_id, pieces(RAW)).size == len(RAW)
    assert keystone.issued == ["token-1", "token-2", "token-3"]


@pytest.mark.usefixtures("clouds")
def test_a_token_that_ends_soon_is_renewed_before_a_long_upload(glance: FakeGlance, keystone: Keystone) -> None:
    keystone.life = timedelta(minutes=50)
    store = cloud("good")
    image_id = new_image(store)
    keystone.life = timedelta(hours=8)
    glance.settings(token="token-2")
    store.upload(image_id, pieces(RAW))
    assert keystone.issued == ["token-1", "token-2"]


@pytest.mark.usefixtures("clouds")
def test_a_cloud_without_login_needs_no_token() -> None:
    store = cloud("open")
    image_id = new_image(store)
    store.upload(image_id, pieces(RAW))
    assert read_all(store, image_id) == RAW


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("refused", ImageStoreDenied, "refused the login: check its entry in clouds.yaml"),
        ("away", ImageStoreUnreachable, "does not answer the login"),
        ("elsewhere", ValueError, "image"),
        ("half", ValueError, "clouds.yaml does not describe the cloud 'half' well"),
        ("unknown", ValueError, "clouds.yaml does not describe the cloud 'unknown' well"),
    ],
)
@pytest.mark.usefixtures("clouds")
def test_a_cloud_that_does_not_work_is_told_without_its_password(
    name: str, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason) as raised:
        cloud(name)
    assert PASSWORD not in str(raised.value)


def test_the_libraries_are_loaded_only_for_a_cloud_and_their_absence_is_told() -> None:
    code = (
        "import sys; from worker.images.store import open_store; from worker.settings import Settings\n"
        "open_store(Settings(image_store='glance+http://127.0.0.1:1'))\n"
        "assert 'openstack' not in sys.modules and 'keystoneauth1' not in sys.modules\n"
        "sys.modules['openstack'] = None\n"
        "try: open_store(Settings(image_store='cloud:any'))\n"
        "except ValueError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == (
        "image_store = 'cloud:any' needs the OpenStack libraries: pip install 'vmops[openstack]'."
    )
