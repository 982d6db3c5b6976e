"""A Glance for tests: a real HTTP server that follows images.md 3 to 5, and whose failures can be arranged.

    python -m tests.support.fake_glance_server --port-file F [--state-dir DIR] [--token T] [--capacity N] [--null]

Not offered: import, staging, locations, projects and roles. `--null` swallows data without keeping or hashing it.

Control, without token, JSON:

    GET  /fake/stats            {"calls": {"upload": 2, ...}, "log": ["create", "show", ...]}; names: see `NAMES`
    POST /fake/stats/reset
    POST /fake/faults           add one: {"call": glob, "effect": ..., "nth": 1, "times": 1, and what the effect takes}
    DELETE /fake/faults         forget all
    GET  /fake/paused           the calls that a pause holds
    POST /fake/resume           {"drop": false}: let them go on; or drop them, and what they have not done yet
    GET  /fake/images           every record, deleted ones too
    POST /fake/settings         {"token": ..., "capacity": ...}

Effects: `status` (answer `status` and do nothing), `delay` (`seconds`), `drop_before`, `drop_after` (cut the
connection, before or after the call took effect), `pause_before`, `pause_after`; for uploads also `pause_inside`,
`drop_inside`, `wedge` (cut; the image stays `saving`, as when Glance is killed), each after `bytes`, and `corrupt` (one
bit is lost).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import hashlib
import html
import json
import re
import signal
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.fake_glance_images import Library, Record, Refusal, inspect

#: Method and path of every call, under the name by which it is counted.
NAMES = [
    ("POST", r"/v2/images", "create"),
    ("GET", r"/v2/images", "list"),
    ("GET", r"/v2/images/([^/]+)", "show"),
    ("PATCH", r"/v2/images/([^/]+)", "update"),
    ("DELETE", r"/v2/images/([^/]+)", "delete"),
    ("PUT", r"/v2/images/([^/]+)/file", "upload"),
    ("GET", r"/v2/images/([^/]+)/file", "download"),
    ("PUT", r"/v2/images/([^/]+)/tags/([^/]+)", "add_tag"),
    ("DELETE", r"/v2/images/([^/]+)/tags/([^/]+)", "delete_tag"),
    ("POST", r"/v2/images/([^/]+)/actions/(deactivate|reactivate)", "action"),
]
PATCHES = {"application/openstack-images-v2.0-json-patch", "application/openstack-images-v2.1-json-patch"}
LONGEST_PAUSE_S = 120.0
PIECE = 1 << 20


class Cut(Exception):
    """The connection broke, or is to be broken."""


@dataclass
class Fault:
    """One arranged failure."""

    call: str
    effect: str
    nth: int = 1
    times: int = 1
    status: int = 500
    seconds: float = 0.0
    bytes: int = 0
    seen: int = 0

    def strikes(self, call: str) -> bool:
        """Count the call; tell whether it is the one."""
        if not fnmatch.fnmatch(call, self.call):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


@dataclass
class Control:
    """What tests arrange and look at."""

    token: str | None = None
    null: bool = False
    log: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)
    drop: bool = False
    turn: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def count(self, call: str) -> Fault | None:
        """Count a call; return the fault that strikes it."""
        with self.changed:
            self.log.append(call)
            return next((fault for fault in list(self.faults) if fault.strikes(call)), None)

    def pause(self, call: str) -> None:
        """Hold the call until `resume`."""
        with self.changed:
            turn = self.turn
            self.paused.append(call)
            self.changed.wait_for(lambda: self.turn > turn, LONGEST_PAUSE_S)
            self.paused.remove(call)
            self.changed.notify_all()
            if self.drop:
                raise Cut

    def resume(self, *, drop: bool) -> None:
        with self.changed:
            self.drop = drop
            self.turn += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.paused, 5)


class Server(ThreadingHTTPServer):
    """The fake itself."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, control: Control, address: tuple[str, int], capacity: int | None) -> None:
        self.control = control
        self.library = Library(folder, capacity)
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed on purpose; anything else is a fault of the fake and must show."""
        if not isinstance(sys.exception(), OSError | Cut):
            super().handle_error(request, client_address)


@dataclass
class Answer:
    """What a call answers; `data` is (file, begin, end)."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    data: tuple[Path, int, int] | None = None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "fake-glance"
    timeout = 150
    rbufsize = 1 << 16
    server: Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the library's names

    # -- one request -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self.has_unread_body = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        path, _, query = self.path.partition("?")
        path = path.rstrip("/") or "/"
        self.query = dict(urllib.parse.parse_qsl(query))
        try:
            try:
                answer = self._control(path) if path.startswith("/fake/") else self._call(path)
            except Refusal as refusal:
                answer = self._refusal(refusal)
            self._send(answer)
        except Cut:
            self._cut()
        except OSError:
            self.close_connection = True

    def _call(self, path: str) -> Answer:
        if path == "/healthcheck":
            return Answer(200, b"OK", "text/plain")
        matches = ((name, re.fullmatch(pattern, path)) for method, pattern, name in NAMES if method == self.command)
        name, match = next(((name, match) for name, match in matches if match), ("versions", None))
        if match is None:
            if path.startswith("/v2/"):
                raise Refusal(404, "The resource could not be found.")
            return Answer(300, b'{"versions": [{"id": "v2.15", "status": "SUPPORTED"}]}')
        fault = self.server.control.count(name)
        effect = fault.effect if fault else ""
        if self.server.control.token not in {None, self.headers.get("X-Auth-Token")}:
            raise Refusal(401, "This server could not verify that you are authorized to access the document.")
        self._before(name, fault)
        arguments = [urllib.parse.unquote(part) for part in match.groups()]
        method = getattr(self, f"_{name}")
        try:
            answer: Answer = method(*arguments, fault) if name == "upload" else method(*arguments)
        finally:  # a refusal is an answer, too
            if effect == "pause_after":
                self.server.control.pause(name)
            if effect == "drop_after":
                raise Cut
        return answer

    def _before(self, name: str, fault: Fault | None) -> None:
        match fault:
            case Fault(effect="status"):
                raise Refusal(fault.status, "arranged")
            case Fault(effect="delay"):
                time.sleep(fault.seconds)
            case Fault(effect="drop_before"):
                raise Cut
            case Fault(effect="pause_before"):
                self.server.control.pause(name)
            case _:
                pass

    def _refusal(self, refusal: Refusal) -> Answer:
        """Glance's error pages: HTML, JSON or text, as the client accepts; connection closed when data is left."""
        title = HTTPStatus(refusal.status).phrase
        accept = self.headers.get("Accept", "")
        if "html" in accept or "*/*" in accept:
            text = f"<html>\n <head>\n  <title>{refusal.status} {title}</title>\n </head>\n <body>\n  "
            text += f"<h1>{refusal.status} {title}</h1>\n  {html.escape(refusal.text)}<br /><br />\n\n </body>\n</html>"
            kind = "text/html; charset=UTF-8"
        elif "json" in accept:
            text = json.dumps({"message": f"{refusal.text}<br /><br />", "code": refusal.status, "title": title})
            kind = "application/json"
        else:
            text, kind = f"{refusal.status} {title}\n\n{refusal.text}\n\n", "text/plain; charset=UTF-8"
        return Answer(refusal.status, text.encode(), kind)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.has_unread_body:
            self.close_connection = True
            self.send_header("Connection", "close")
        length = answer.data[2] - answer.data[1] if answer.data else len(answer.body)
        if answer.status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if answer.data is None:
            self.wfile.write(answer.body)
            return
        path, begin, end = answer.data
        with path.open("rb") as file:
            self.wfile.flush()
            self.connection.sendfile(file, begin, end - begin) if end > begin else None

    def _cut(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _json(self) -> Any:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.has_unread_body = False
        try:
            return json.loads(body or b"{}")
        except ValueError:
            raise Refusal(400, "The body is no JSON.") from None

    # -- calls -----------------------------------------------------------------------------------------------------

    def _shown(self, record: Record) -> Record:
        place = f"/v2/images/{record['id']}"
        return {**record, "self": place, "file": f"{place}/file", "schema": "/v2/schemas/image", "stores": "fs"}

    def _create(self) -> Answer:
        record = self.server.library.create(self._json())
        host = self.headers.get("Host", "")
        headers = {"Location": f"http://{host}/v2/images/{record['id']}", "OpenStack-image-store-ids": "fs"}
        return Answer(201, json.dumps(self._shown(record)).encode(), headers=headers)

    def _list(self) -> Answer:
        found, marker = self.server.library.find(self.query)
        page: Record = {"images": [self._shown(record) for record in found], "first": "/v2/images"}
        if marker is not None:
            page["next"] = f"/v2/images?{urllib.parse.urlencode({**self.query, 'marker': marker})}"
        return Answer(200, json.dumps(page).encode())

    def _show(self, image_id: str) -> Answer:
        return Answer(200, json.dumps(self._shown(self.server.library.get(image_id))).encode())

    def _update(self, image_id: str) -> Answer:
        if self.headers.get("Content-Type") not in PATCHES:
            raise Refusal(415, "Image PATCH expects Content-Type one of: " + ", ".join(sorted(PATCHES)))
        record = self.server.library.patch(image_id, self._json())
        return Answer(200, json.dumps(self._shown(record)).encode())

    def _delete(self, image_id: str) -> Answer:
        self.server.library.delete(image_id)
        return Answer(204)

    def _add_tag(self, image_id: str, tag: str) -> Answer:
        with self.server.library.lock:
            tags = self.server.library.get(image_id)["tags"]
            self.server.library.change(image_id, {"tags": [*tags, tag] if tag not in tags else tags})
        return Answer(204)

    def _delete_tag(self, image_id: str, tag: str) -> Answer:
        with self.server.library.lock:
            tags = self.server.library.get(image_id)["tags"]
            if tag not in tags:
                raise Refusal(404, "The resource could not be found.")
            self.server.library.change(image_id, {"tags": [one for one in tags if one != tag]})
        return Answer(204)

    def _action(self, image_id: str, action: str) -> Answer:
        before, after = ("active", "deactivated") if action == "deactivate" else ("deactivated", "active")
        with self.server.library.lock:
            status = self.server.library.get(image_id)["status"]
            if status not in {before, after}:
                raise Refusal(403, f"Not allowed to {action} image in status '{status}'")
            self.server.library.change(image_id, {"status": after})
        return Answer(204)

    def _download(self, image_id: str) -> Answer:
        record = self.server.library.get(image_id)
        if record["status"] == "deactivated":
            raise Refusal(403, "The requested image has been deactivated. Image data download is forbidden.")
        path = self.server.library.data_path(image_id)
        if record["status"] != "active" or not path.exists():
            return Answer(204)
        begin, end = 0, record["size"]
        headers = {"Content-MD5": record["checksum"] or "", "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            begin = int(wanted[1])
            if begin >= end:
                raise Refusal(416, "The Range requested is not available.")
            end = min(end, int(wanted[2]) + 1) if wanted[2] else end
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{record['size']}"
        status = 206 if wanted else 200
        return Answer(status, content_type="application/octet-stream", headers=headers, data=(path, begin, end))

    def _upload(self, image_id: str, fault: Fault | None) -> Answer:
        library = self.server.library
        if self.headers.get("Content-Type") != "application/octet-stream":
            raise Refusal(415, f"Invalid content type {self.headers.get('Content-Type')}")
        record = library.begin_upload(image_id)
        part = None if self.server.control.null else library.folder / f"{image_id}.{uuid.uuid4().hex}.part"
        try:
            library.end_upload(image_id, self._receive(record, part, fault), part)
        except BaseException:
            if part is not None:
                part.unlink(missing_ok=True)
            if fault is None or fault.effect != "wedge":
                library.break_off_upload(image_id)
            raise
        return Answer(204)

    # -- the body --------------------------------------------------------------------------------------------------

    def _receive(self, record: Record, part: Path | None, fault: Fault | None) -> Record:
        """Take the body in; return the fields of the stored image."""
        expected = self.headers.get("x-openstack-image-size")
        room = self.server.library.capacity
        room = None if room is None else room - self.server.library.stored_bytes()
        md5, sha512, size, head = hashlib.md5(usedforsecurity=False), hashlib.sha512(), 0, b""
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(part.open("wb")) if part else None
            for piece in self._body():
                size += len(piece)
                if expected is not None and size > int(expected):
                    raise Refusal(400, f"Size exceeds: expected {expected} bytes, got {size} bytes")
                if room is not None and size > room:
                    raise Refusal(
                        413, "Image storage media is full: There is not enough disk space on the image storage."
                    )
                if len(head) < PIECE // 16:
                    head += bytes(piece[: PIECE // 16])
                if file:
                    self._corrupt(piece, fault)
                    file.write(piece)
                    md5.update(piece)
                    sha512.update(piece)
                self._inside(fault, size)
        self.has_unread_body = False
        if expected is not None and size != int(expected):
            raise Refusal(400, f"Size mismatch: expected {expected} bytes, got {size} bytes")
        hashes = {"checksum": md5.hexdigest(), "os_hash_algo": "sha512", "os_hash_value": sha512.hexdigest()}
        try:
            virtual_size = inspect(record, head, size)
        except Refusal:
            self.server.library.change(record["id"], hashes)  # what the real one keeps of it
            raise
        return {"size": size, "virtual_size": virtual_size, **(hashes if file else {})}

    def _corrupt(self, piece: memoryview, fault: Fault | None) -> None:
        if fault and fault.effect == "corrupt":
            piece[-1] ^= 1
            fault.effect = "spent"

    def _inside(self, fault: Fault | None, size: int) -> None:
        if fault is None or size < fault.bytes:
            return
        if fault.effect == "pause_inside":
            fault.effect = "spent"
            self.server.control.pause("upload")
        elif fault.effect in {"drop_inside", "wedge"}:
            raise Cut

    def _body(self) -> Iterator[memoryview]:
        """The pieces of the body, each valid until the next. An early end is a cut, as with every server tried."""
        buffer = memoryview(bytearray(PIECE))
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            yield from self._pieces(int(self.headers.get("Content-Length", "0")), buffer)
            return
        while True:
            try:
                length = int(self.rfile.readline(64).split(b";")[0], 16)
            except ValueError:
                raise Cut from None
            if length == 0:
                while self.rfile.readline(1024) not in {b"\r\n", b""}:
                    pass
                return
            yield from self._pieces(length, buffer)
            if self.rfile.readline(3) != b"\r\n":
                raise Cut

    def _pieces(self, left: int, buffer: memoryview) -> Iterator[memoryview]:
        while left:
            got = self.rfile.readinto(buffer[: min(left, PIECE)])
            if not got:
                raise Cut
            yield buffer[:got]
            left -= got

    # -- control ---------------------------------------------------------------------------------------------------

    def _control(self, path: str) -> Answer:
        control, library = self.server.control, self.server.library
        body = self._json() if self.command == "POST" else {}
        reply: Any = {}
        match (self.command, path):
            case ("GET", "/fake/stats"):
                reply = {"calls": dict(Counter(control.log)), "total": len(control.log), "log": control.log}
            case ("POST", "/fake/stats/reset"):
                control.log.clear()
            case ("POST", "/fake/faults"):
                control.faults.append(Fault(**body))
            case ("GET", "/fake/faults"):
                reply = [dataclasses.asdict(fault) for fault in control.faults]
            case ("DELETE", "/fake/faults"):
                control.faults.clear()
            case ("GET", "/fake/paused"):
                reply = list(control.paused)
            case ("POST", "/fake/resume"):
                control.resume(drop=bool(body.get("drop")))
            case ("GET", "/fake/images"):
                reply = library.everything()
            case ("POST", "/fake/settings"):
                control.token = body.get("token", control.token)
                library.capacity = body.get("capacity", library.capacity)
            case _:
                raise Refusal(404, "The fake has no such control.")
        return Answer(200, json.dumps(reply).encode())


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="A Glance for tests.")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--port-file", type=Path)
    parser.add_argument("--state-dir", type=Path, help="keeps records and data; default: a folder that goes with it")
    parser.add_argument("--token", help="refuse requests that do not bear it")
    parser.add_argument("--capacity", type=int, help="bytes of all images together")
    parser.add_argument("--null", action="store_true", help="swallow data")
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        folder = options.state_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        control = Control(token=options.token, null=options.null)
        server = stack.enter_context(Server(folder, control, (host, int(port)), options.capacity))
        if options.cert:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(options.cert, options.key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        if options.port_file:
            draft = options.port_file.with_suffix(".new")
            draft.write_text(str(server.server_address[1]))
            draft.replace(options.port_file)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
