"""What Glance answers on the wire. Run on the fake and on the real one, so that the fake does not drift away."""

from __future__ import annotations

import http.client
import json
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support import vhd_files

OCTETS = {"Content-Type": "application/octet-stream"}
PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


class Speaker:
    """Speaks to Glance without any client of ours."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, chunked: bool = False
    ) -> Reply:
        if isinstance(body, list | dict):
            body = json.dumps(body).encode()
            headers = headers or {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=20)
        try:
            if chunked:  # in one piece, so that an early refusal cannot cut it off
                body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
                headers = {**(headers or {}), "Transfer-Encoding": "chunked"}
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, dict(response.headers.items()), response.read())
        finally:
            connection.close()

    def new(self, disk_format: str | None = "raw", container_format: str | None = "bare", **fields: Any) -> str:
        record = {"name": "a", "disk_format": disk_format, "container_format": container_format, **fields}
        reply = self("POST", "/v2/images", record)
        assert reply.status == 201, reply
        return str(reply.json()["id"])

    def show(self, image_id: str) -> dict[str, Any]:
        return self("GET", f"/v2/images/{image_id}").json()

    def put(self, image_id: str, data: bytes, **headers: str) -> Reply:
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        return self("PUT", f"/v2/images/{image_id}/file", data, {**OCTETS, **extra}, chunked=True)

    def patch(self, image_id: str, *changes: tuple[str, str, Any]) -> Reply:
        document = [{"op": op, "path": path, "value": value} for op, path, value in changes]
        return self("PATCH", f"/v2/images/{image_id}", document, PATCH)


class GlanceProtocol:
    """The tests; a subclass gives the fixture `glance_url`."""

    @pytest.fixture
    def speak(self, glance_url: str) -> Speaker:
        return Speaker(glance_url)

    def test_versions_and_health(self, speak: Speaker) -> None:
        assert speak("GET", "/").status == 300
        assert "versions" in speak("GET", "/").json()
        assert speak("GET", "/healthcheck").status == 200

    @pytest.mark.parametrize(
        ("record", "status"),
        [
            ({}, 201),
            ({"disk_format": None, "container_format": None}, 201),
            ({"id": "nope"}, 400),
            ({"disk_format": "floppy"}, 400),
            ({"container_format": "tgz"}, 400),
            ({"count": 3}, 400),
            ({"flag": True}, 400),
            ({"min_disk": "3"}, 400),
            ({"visibility": "secret"}, 400),
            ({"os_glance_x": "y"}, 403),
            ({"status": "active"}, 403),
            ({"visibility": "community"}, 201),
        ],
    )
    def test_creation(self, speak: Speaker, record: dict[str, Any], status: int) -> None:
        assert speak("POST", "/v2/images", {"name": "a", **record}).status == status

    def test_a_new_record(self, speak: Speaker) -> None:
        reply = speak("POST", "/v2/images", {"name": "a", "os_type": "linux"})
        record = reply.json()
        assert reply.headers["Location"].endswith(f"/v2/images/{record['id']}")
        assert record["os_type"] == "linux"
        assert record["self"] == f"/v2/images/{record['id']}"
        assert record["file"] == f"/v2/images/{record['id']}/file"
        expected: dict[str, Any] = {
            "status": "queued",
            "visibility": "shared",
            "size": None,
            "virtual_size": None,
            "checksum": None,
        }
        expected |= {"os_hash_algo": None, "os_hash_value": None, "min_disk": 0, "min_ram": 0, "tags": []}
        expected |= {"protected": False, "os_hidden": False, "owner": None, "disk_format": None}
        assert {key: record[key] for key in expected} == expected

    def test_an_id_is_never_used_twice(self, speak: Speaker) -> None:
        image_id = str(uuid.uuid4())
        assert speak.new(id=image_id) == image_id
        assert speak("POST", "/v2/images", {"name": "a", "id": image_id}).status == 409
        assert speak("DELETE", f"/v2/images/{image_id}").status == 204
        assert speak("DELETE", f"/v2/images/{image_id}").status == 404
        assert speak("GET", f"/v2/images/{image_id}").status == 404
        again = speak("POST", "/v2/images", {"name": "a", "id": image_id})
        assert again.status == 409
        assert b"already exists" in again.body

    def test_a_protected_image_is_not_deleted(self, speak: Speaker) -> None:
        image_id = speak.new(protected=True)
        assert speak("DELETE", f"/v2/images/{image_id}").status == 403

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            (("add", "/new", "x"), 200),
            (("add", "/a~1b~0c", "x"), 200),
            (("replace", "/name", "b"), 200),
            (("replace", "/missing", "x"), 409),
            (("remove", "/missing", None), 409),
            (("add", "/count", 3), 400),
            (("add", "/min_disk", "3"), 400),
            (("add", "/min_disk", 3), 200),
            (("add", "/disk_format", "vhd"), 200),
            (("add", "/disk_format", "floppy"), 400),
            (("add", "/status", "active"), 403),
            (("add", "/size", 3), 403),
            (("add", "/os_glance_x", "y"), 403),
        ],
    )
    def test_a_change(self, speak: Speaker, change: tuple[str, str, Any], status: int) -> None:
        assert speak.patch(speak.new(), change).status == status

    def test_a_change_needs_its_own_content_type(self, speak: Speaker) -> None:
        reply = speak("PATCH", f"/v2/images/{speak.new()}", [], {"Content-Type": "application/json"})
        assert reply.status == 415

    def test_properties_have_a_quota(self, speak: Speaker) -> None:
        reply = speak.patch(speak.new(), *(("add", f"/p{n}", "x") for n in range(130)))
        assert reply.status == 413

    def test_tags(self, speak: Speaker) -> None:
        image_id = speak.new()
        place = f"/v2/images/{image_id}/tags/two%20words"
        assert speak("PUT", place).status == 204
        assert speak.show(image_id)["tags"] == ["two words"]
        assert speak("DELETE", place).status == 204
        assert speak("DELETE", place).status == 404

    def test_the_list_is_filtered_and_paged(self, speak: Speaker) -> None:
        name = uuid.uuid4().hex
        ids = {speak.new(name=name, os_type="linux") for _ in range(3)}
        speak.new(name=name, os_type="windows")
        found = speak("GET", f"/v2/images?name={name}&os_type=linux").json()["images"]
        assert {image["id"] for image in found} == ids
        page = speak("GET", f"/v2/images?name={name}&os_type=linux&limit=2").json()
        assert len(page["images"]) == 2
        rest = speak("GET", page["next"]).json()
        assert len(rest["images"]) == 1
        assert {image["id"] for image in [*page["images"], *rest["images"]]} == ids

    @pytest.mark.parametrize(
        ("formats", "data", "status", "virtual_size"),
        [
            (("raw", "bare"), b"x" * 1000, 204, 1000),
            (("raw", "bare"), b"", 204, None),
            (("vhd", "bare"), vhd_files.vhd(4 << 20, {}), 204, 4 << 20),
            (("vhd", "bare"), vhd_files.vhd(4 << 20, {}, kind=4), 204, 4 << 20),
            (("vhd", "bare"), b"x" * 1000, 415, None),
            (("vhd", "bare"), bytes(4096) + vhd_files.footer(4096, kind=2), 415, None),
            (("vhd", "ovf"), b"x" * 1000, 204, None),
            (("iso", "bare"), b"x" * 40_000, 415, None),
            (("aki", "aki"), b"x" * 1000, 204, None),
            (("aki", "bare"), b"x" * 1000, 204, None),
            ((None, None), b"x", 400, None),
            (("raw", None), b"x", 400, None),
        ],
        ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else str(value),
    )
    def test_data_is_judged_by_the_formats(
        self, speak: Speaker, formats: tuple[str, str], data: bytes, status: int, virtual_size: int | None
    ) -> None:
        image_id = speak.new(*formats)
        assert speak.put(image_id, data).status == status
        record = speak.show(image_id)
        assert record["status"] == ("active" if status == 204 else "queued")
        assert record["size"] == (len(data) if status == 204 else None)
        assert record["virtual_size"] == virtual_size

    def test_after_data_of_the_wrong_format_every_upload_fails(self, speak: Speaker) -> None:
        image_id = speak.new("vhd")
        assert speak.put(image_id, b"x" * 1000).status == 415
        assert speak.show(image_id)["os_hash_value"] is not None
        assert speak.put(image_id, vhd_files.vhd(4 << 20, {})).status == 500
        assert speak.show(image_id)["status"] == "queued"

    @pytest.mark.parametrize(("size", "status"), [("5", 400), ("1000", 204), ("2000", 400)])
    def test_a_declared_size_must_be_kept(self, speak: Speaker, size: str, status: int) -> None:
        image_id = speak.new()
        reply = speak.put(image_id, b"x" * 1000, x_openstack_image_size=size)
        assert reply.status == status
        record = speak.show(image_id)
        assert record["status"] == ("active" if status == 204 else "queued")
        if status == 400:
            assert b"ize" in reply.body
            assert record["os_hash_value"] is None
            assert speak.put(image_id, b"x" * 1000).status == 204

    def test_uploads_are_refused(self, speak: Speaker) -> None:
        image_id = speak.new()
        place = f"/v2/images/{image_id}/file"
        assert speak("PUT", place, b"x").status == 415
        assert speak("PUT", place, b"x", {"Content-Type": "application/json"}).status == 415
        assert speak.put(str(uuid.uuid4()), b"x").status == 404
        assert speak("PUT", place, b"x" * 100, OCTETS).status == 204
        again = speak.put(image_id, b"x")
        assert again.status == 409
        assert b"transition from active to saving" in again.body
        for key in ("disk_format", "container_format"):
            assert speak.patch(image_id, ("add", f"/{key}", "vhd" if key == "disk_format" else "ovf")).status == 403

    def test_downloads(self, speak: Speaker) -> None:
        image_id = speak.new()
        place = f"/v2/images/{image_id}/file"
        empty = speak("GET", place)
        assert (empty.status, empty.body) == (204, b"")
        speak.put(image_id, b"0123456789")
        whole = speak("GET", place)
        assert (whole.status, whole.body, whole.headers["Content-Length"]) == (200, b"0123456789", "10")
        assert whole.headers["Content-MD5"] == speak.show(image_id)["checksum"]
        for wanted, expected in (("2-4", b"234"), ("7-", b"789")):
            part = speak("GET", place, None, {"Range": f"bytes={wanted}"})
            assert (part.status, part.body) == (206, expected)
            assert part.headers["Content-MD5"] == whole.headers["Content-MD5"]
            assert part.headers["Content-Range"].startswith("bytes ")
        assert speak("GET", place, None, {"Range": "bytes=10-"}).status == 416
        assert speak("GET", f"/v2/images/{uuid.uuid4()}/file").status == 404

    def test_a_deactivated_image_comes_back(self, speak: Speaker) -> None:
        image_id = speak.new()
        assert speak("POST", f"/v2/images/{image_id}/actions/deactivate").status == 403
        speak.put(image_id, b"x")
        assert speak("POST", f"/v2/images/{image_id}/actions/deactivate").status == 204
        assert speak.show(image_id)["status"] == "deactivated"
        assert speak("POST", f"/v2/images/{image_id}/actions/reactivate").status == 204
        assert speak.show(image_id)["status"] == "active"

    @pytest.mark.parametrize("accept", ["", "*/*", "application/json"])
    def test_refusals_are_dressed_as_the_client_likes(self, speak: Speaker, accept: str) -> None:
        headers = {"Accept": accept} if accept else {}
        reply = speak("GET", f"/v2/images/{uuid.UUID(int=7)}", None, headers)
        assert reply.status == 404
        kind = {"": "text/plain", "*/*": "text/html", "application/json": "application/json"}[accept]
        assert reply.headers["Content-Type"].startswith(kind)
        assert b"No image found with ID" in reply.body
