"""Glance, the image service of OpenStack, through its v2 API.

The high-level clients resend an exhausted body after a 401, a 503 or a dropped connection and then report success with
zero bytes stored (images.md 6.3). Here a stream is never sent twice: what fails needs a new export.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import select
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import quote

from worker.errors import (
    ImageConflict,
    ImageFormatRefused,
    ImageNotFound,
    ImageNotReady,
    ImageStoreDenied,
    ImageStoreFull,
    ImageStoreUnreachable,
    TruncatedStream,
    VmopsError,
)
from worker.images.image import (
    CORE_FIELDS,
    NUMBER_FIELDS,
    Image,
    ImageMeta,
    ImageState,
    Stored,
    Stream,
)
from worker.images.tally import Tally
from worker.images.wire import BUSY, Answer, Auth, Wire, early_answer, read_answer

#: From the end of an upload to its answer: the store behind Glance may commit slowly.
ANSWER_TIMEOUT_S = 600.0
#: When the answer to a complete upload was lost: how long Glance may take to finish, and the pause between two looks.
SETTLE_S = 30.0
SETTLE_CHECK_S = 0.5

_STATES = {
    "queued": ImageState.QUEUED,
    "saving": ImageState.SAVING,
    "active": ImageState.ACTIVE,
    "deactivated": ImageState.DEACTIVATED,
    "deleted": ImageState.DELETED,
    "pending_delete": ImageState.DELETED,
}
#: Top-level keys of an image that are not properties (images.md 3.1).
_NOT_PROPERTIES = (
    CORE_FIELDS
    | {"id", "status", "protected", "owner", "size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value"}
    | {"os_hidden", "tags", "created_at", "updated_at", "stores", "self", "file", "schema", "direct_url", "locations"}
)


class GlanceStore:
    """One Glance. Safe to share between threads as far as its `Auth` is."""

    def __init__(
        self, url: str, auth: Auth | None = None, ca_file: Path | None = None, *, verify_tls: bool = True
    ) -> None:
        self._wire = Wire(url, auth or Auth(), ca_file, verify_tls=verify_tls)

    def __repr__(self) -> str:
        return f"GlanceStore({self._wire.url!r})"

    def probe(self) -> None:
        """Ask for one image's record, whichever; see `ImageStore.probe`."""
        answer = self._wire.request("GET", "/v2/images?limit=1")
        if answer.status == HTTPStatus.NOT_FOUND:
            raise self._no_glance()
        self._check(answer, "list")
        try:
            json.loads(answer.body)["images"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._no_glance() from error

    def create(self, meta: ImageMeta) -> Image:
        """Make the record; see `ImageStore.create`. Never repeated here: the answer may be lost, the image made."""
        record: dict[str, object] = dict(meta.properties)
        record |= {
            "name": meta.name,
            "visibility": meta.visibility,
            "min_disk": meta.min_disk,
            "min_ram": meta.min_ram,
            "disk_format": meta.disk_format,
            "container_format": meta.container_format,
        }
        if meta.image_id is not None:
            record["id"] = meta.image_id
        answer = self._wire.request_once("POST", "/v2/images", json.dumps(record).encode(), "application/json")
        self._check(answer, meta.image_id or repr(meta.name))
        return self._image(answer)

    def describe(self, image_id: str) -> Image:
        """Return the image; see `ImageStore.describe`."""
        answer = self._wire.request("GET", _path(image_id))
        self._check(answer, image_id)
        image = self._image(answer)
        if image.state is ImageState.DELETED:
            raise ImageNotFound(f"The image service has deleted image {image_id}.")
        return image

    def update(self, image_id: str, changes: Mapping[str, str | int]) -> Image:
        """Change properties and core fields; see `ImageStore.update`. `add` overwrites; `replace` would not add."""
        patch = [
            {
                "op": "add",
                "path": "/" + key.replace("~", "~0").replace("/", "~1"),
                "value": int(value) if key in NUMBER_FIELDS else value,
            }
            for key, value in changes.items()
        ]
        body = json.dumps(patch).encode()
        answer = self._wire.request("PATCH", _path(image_id), body, "application/openstack-images-v2.1-json-patch")
        self._check(answer, image_id)
        return self._image(answer)

    def upload(self, image_id: str, chunks: Iterator[bytes | memoryview], size: int | None = None) -> Stored:
        """Send the data in chunks; see `ImageStore.upload`.

        The terminating chunk goes out only after `chunks` has ended well; otherwise the connection is closed without
        it and Glance returns the image to `queued` (images.md 4).
        """
        self._wire.auth.prepare_for_hours()
        headers = {"Content-Type": "application/octet-stream", "Transfer-Encoding": "chunked"}
        if size is not None:
            headers["x-openstack-image-size"] = str(size)
        connection = self._wire.connect()
        try:
            self._wire.begin(connection, "PUT", _path(image_id) + "/file", headers)
            with Tally() as tally:
                for chunk in chunks:
                    tally.add(chunk)
                    self._send_chunk(connection, image_id, chunk)
                    if size is not None and tally.size > size:
                        raise TruncatedStream(f"Image {image_id}: more than the announced {size} bytes came.")
                stored = tally.result()
            if stored.size == 0 or (size is not None and stored.size != size):
                raise TruncatedStream(f"Image {image_id}: {stored.size} bytes came instead of {size or 'any data'}.")
            answer = _end_upload(connection)
        finally:
            connection.close()
        if answer is None:
            return self._settled(image_id, stored)
        if answer.status not in range(200, 300):
            self._refused(answer, image_id)
        return stored

    def open(self, image_id: str, offset: int = 0) -> Stream:
        """Return the data; see `ImageStore.open`."""
        connection, response = self._get_data(image_id, offset)
        if response.status == HTTPStatus.UNAUTHORIZED and self._wire.auth.renew():
            connection.close()
            connection, response = self._get_data(image_id, offset)
        try:
            self._check_data(response, image_id, offset)
        except BaseException:
            connection.close()
            raise
        return _HttpStream(connection, response)

    def delete(self, image_id: str) -> None:
        """Delete the image; see `ImageStore.delete`."""
        answer = self._wire.request("DELETE", _path(image_id))
        if answer.status != HTTPStatus.NOT_FOUND:
            self._check(answer, image_id)

    # -- the upload ------------------------------------------------------------------------------------------------

    def _send_chunk(self, connection: http.client.HTTPConnection, image_id: str, chunk: bytes | memoryview) -> None:
        """Send one chunk: three sends, no copy (images.md 7). Stops at once when the server refuses mid-stream."""
        if not chunk:
            return  # an empty chunk would be the terminator
        try:
            if not self._wire.is_encrypted and _has_answer(connection):
                raise BrokenPipeError("answered before the end of the data")
            connection.send(b"%x\r\n" % len(chunk))
            connection.send(chunk)
            connection.send(b"\r\n")
        except OSError as error:
            answer = early_answer(connection)
            if answer is not None:
                self._refused(answer, image_id)
            raise ImageStoreUnreachable(
                f"The image service {self._wire.url} broke off the upload of image {image_id} ({error})."
            ) from error

    def _refused(self, answer: Answer, image_id: str) -> NoReturn:
        """Raise what a refused upload means (images.md 4.1)."""
        status = answer.status
        if status == HTTPStatus.UNAUTHORIZED and self._wire.auth.renew():
            self.describe(image_id)  # raises ImageStoreDenied when the new token is no better
            raise ImageStoreUnreachable(f"The token expired before image {image_id} was stored; there is a new one.")
        if status in {HTTPStatus.CONFLICT, HTTPStatus.GONE}:
            image = self.describe(image_id)  # raises ImageNotFound when that is the reason
            if image.state is ImageState.QUEUED or (status == HTTPStatus.GONE and image.state is ImageState.SAVING):
                raise ImageNotReady(f"Image {image_id}: another upload got in the way and ended.")
            raise ImageConflict(f"Image {image_id} is {image.store_state}: it takes no data.")
        if status == HTTPStatus.INTERNAL_SERVER_ERROR and self._has_remains(image_id):
            raise ImageConflict(
                f"Image {image_id} holds remains of data that the image service refused, and takes no other (Glance 33 "
                "with file storage): delete it, then submit again with a new image."
            )
        if status == HTTPStatus.BAD_REQUEST and "size" in answer.reason().lower():
            raise TruncatedStream(f"The image service counted another size of image {image_id}: {answer.reason()}")
        self._check(answer, image_id)
        raise ImageStoreUnreachable(f"The image service answered {status} in the middle of image {image_id}.")

    def _has_remains(self, image_id: str) -> bool:
        """Tell whether the image waits for data and has a hash already.

        Seen on Glance 33: data of the wrong format is refused (415) but stays in the store, and every later upload ends
        in 500. An upload that failed for other reasons leaves no hash.
        """
        image = self.describe(image_id)
        return image.state is ImageState.QUEUED and image.hash_value is not None

    def _settled(self, image_id: str, stored: Stored) -> Stored:
        """All was sent, the answer was lost: look what became of it."""
        give_up = time.monotonic() + SETTLE_S
        while (image := self.describe(image_id)).state is ImageState.SAVING:
            if time.monotonic() > give_up:
                raise ImageNotReady(f"The image service has all of image {image_id} and is not done with it.")
            time.sleep(SETTLE_CHECK_S)
        if image.state is ImageState.QUEUED:
            raise ImageStoreUnreachable(f"The image service broke off and threw image {image_id} away.")
        ours = (stored.size, stored.sha512) if image.hash_algo == "sha512" else (stored.size, image.hash_value)
        if image.state is not ImageState.ACTIVE or (image.size, image.hash_value) != ours:
            raise ImageConflict(f"Image {image_id} is {image.store_state} with data that is not ours.")
        return stored

    # -- requests and answers --------------------------------------------------------------------------------------

    def _get_data(self, image_id: str, offset: int) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._wire.connect()
        try:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            self._wire.begin(connection, "GET", _path(image_id) + "/file", headers)
            with self._wire.errors():
                return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def _check_data(self, response: http.client.HTTPResponse, image_id: str, offset: int) -> None:
        """Return when data follows, else raise why not."""
        if response.status == HTTPStatus.NO_CONTENT:
            raise ImageNotReady(f"Image {image_id} has no data yet.")
        if response.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            with self._wire.errors():
                answer = read_answer(response)
            self._check(answer, image_id)
        if offset and response.status != HTTPStatus.PARTIAL_CONTENT:
            raise ImageStoreUnreachable(f"The image service cannot resume image {image_id}: begin at 0.")

    def _check(self, answer: Answer, image_id: str) -> None:
        """Return when the answer is a success, else raise what it means."""
        status, reason = answer.status, answer.reason()
        if status in range(200, 300):
            return
        url = self._wire.url
        errors: dict[int, VmopsError] = {
            400: ImageFormatRefused(f"The image service refused image {image_id}: {reason}"),
            401: ImageStoreDenied(
                f"The image service {url} refused our token or wants one: check image_store_token_file."
            ),
            403: ImageStoreDenied(f"The image service {url} does not allow this on image {image_id}: {reason}"),
            404: ImageNotFound(f"The image service {url} has no image {image_id}."),
            409: ImageConflict(f"The image service refused image {image_id}: {reason}"),
            410: ImageNotFound(f"The image service has deleted image {image_id}."),
            413: ImageStoreFull(f"The image service has no room for image {image_id}, or a quota is used up: {reason}"),
            415: ImageFormatRefused(f"The content of image {image_id} is not what its formats say: {reason}"),
            416: ImageFormatRefused(f"Image {image_id} is shorter than the offset asked for."),
            507: ImageStoreFull(f"The image service has no room for image {image_id}: {reason}"),
        }
        if status in errors:
            raise errors[status]
        if status in BUSY:
            raise ImageStoreUnreachable(self._wire.busy(answer))
        raise ImageStoreDenied(f"{url} answered {status} ({reason}): is image_store the address of a Glance?")

    def _image(self, answer: Answer) -> Image:
        try:
            record: dict[str, Any] = json.loads(answer.body)
            return _parse(record, answer.headers.get("Date"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._no_glance() from error

    def _no_glance(self) -> VmopsError:
        return ImageStoreDenied(f"{self._wire.url} does not speak Glance's language: check image_store.")


class _HttpStream:
    """The data of an image. Keeps connection and answer alive: dropping either closes the stream (images.md 7)."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response = connection, response
        self.length = int(response.headers.get("Content-Length") or 0)
        self._left = self.length

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end. Raises TruncatedStream when the service breaks off."""
        if self._left == 0:
            return 0
        try:
            got = self._response.readinto(buffer)
        except (OSError, http.client.HTTPException) as error:
            raise TruncatedStream(f"The download broke off {self._left} bytes before its end ({error}).") from error
        if got == 0 and len(buffer):
            raise TruncatedStream(f"The download ended {self._left} bytes early.")
        self._left -= got
        return got

    def close(self) -> None:
        """Drop the connection."""
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _path(image_id: str) -> str:
    return f"/v2/images/{quote(image_id, safe='')}"


def _has_answer(connection: http.client.HTTPConnection) -> bool:
    """Tell whether the server has something to say already. Not for TLS, where tickets arrive unasked."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _end_upload(connection: http.client.HTTPConnection) -> Answer | None:
    """Send the terminator, which makes the image active, and return the answer; None when it was lost."""
    try:
        connection.send(b"0\r\n\r\n")
    except OSError:
        return early_answer(connection)
    try:
        connection.sock.settimeout(ANSWER_TIMEOUT_S)
        return read_answer(connection.getresponse())
    except (OSError, http.client.HTTPException):
        return None


def _parse(record: dict[str, Any], date: str | None) -> Image:
    """Build an Image from Glance's record; ages by Glance's own clock."""
    now = email.utils.parsedate_to_datetime(date) if date else datetime.now(UTC)
    updated = datetime.fromisoformat(record["updated_at"])
    return Image(
        id=record["id"],
        name=record.get("name") or "",
        state=_STATES.get(record["status"], ImageState.ERROR),
        size=record.get("size"),
        virtual_size=record.get("virtual_size"),
        disk_format=record.get("disk_format"),
        container_format=record.get("container_format"),
        hash_algo=record.get("os_hash_algo"),
        hash_value=record.get("os_hash_value"),
        min_disk=record.get("min_disk") or 0,
        min_ram=record.get("min_ram") or 0,
        visibility=record.get("visibility") or "private",
        properties={k: v for k, v in record.items() if k not in _NOT_PROPERTIES and isinstance(v, str)},
        store_state=record["status"],
        unchanged_s=max(0.0, (now - updated).total_seconds()),
    )
