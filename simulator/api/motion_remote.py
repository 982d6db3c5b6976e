"""The other pool of a storage motion, over the wire: calls, disk contents, records, memory (xapi.md 14.4)."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import xmlrpc.client
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, cast
from urllib.parse import SplitResult, urlencode, urlsplit

from simulator.api.registry import Context
from simulator.api.vdi import storage
from simulator.core.database import Row
from simulator.core.failures import Failure, internal_error

_LOOK_S = 0.02
_TIMEOUT_S = 120.0
#: The handler that takes a guest's memory.
MEMORY_PATH = "/services/xenops/memory"
_CREATED = ("name_label", "name_description", "type", "sharable", "other_config", "xenstore_data")


class Remote:
    """A destination, as `host.migrate_receive` of the other pool described it."""

    def __init__(self, ctx: Context, dest: Mapping[str, str]) -> None:
        """Read the map. Raises INTERNAL_ERROR Not_found for one that lacks something, as XAPI does."""
        self._ctx = ctx
        try:
            self._session, self.host_ref = dest["session_id"], dest["host"]
            self._master, self._xenops = urlsplit(dest["master"]), urlsplit(dest["xenops"])
        except KeyError:
            raise internal_error("Not_found") from None

    # -- the wire

    def _connect(self, url: SplitResult) -> http.client.HTTPConnection:
        if url.scheme != "https":
            return http.client.HTTPConnection(url.hostname or "", url.port, timeout=_TIMEOUT_S)
        context = ssl.create_default_context()
        # Pools certify themselves: XAPI, too, has nothing to verify another pool's certificate with.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(url.hostname or "", url.port, timeout=_TIMEOUT_S, context=context)

    def _unreachable(self, url: SplitResult) -> Failure:
        return Failure("CANNOT_CONTACT_HOST", url.hostname or "")

    def call(self, method: str, *params: Any) -> Any:
        """Call the other pool's master. Raises its Failure, CANNOT_CONTACT_HOST."""
        body = xmlrpc.client.dumps((self._session, *params), method).encode()
        try:
            with closing(self._connect(self._master)) as connection:
                connection.request("POST", "/", body, {"Content-Type": "text/xml"})
                answer: Any = xmlrpc.client.loads(connection.getresponse().read())[0][0]
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            raise self._unreachable(self._master) from None
        if answer["Status"] != "Success":
            raise Failure(*answer["ErrorDescription"])
        return answer["Value"]

    def _put(self, path: str, query: Mapping[str, str], body: Iterable[bytes | memoryview], length: int) -> str:
        """Send a body to a handler, with a task of its own; return the task's result. Raises its Failure."""
        task_ref = self.call("task.create", f"storage motion: PUT {path}", "")
        try:
            given = {"session_id": self._session, "task_id": task_ref, **query}
            headers = {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
            try:
                with closing(self._connect(self._master)) as connection:
                    # The signature knows no iterable of memoryviews; the code sends any buffer.
                    connection.request("PUT", f"{path}?{urlencode(given)}", cast("Iterable[bytes]", body), headers)
                    connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                if self.call("task.get_status", task_ref) == "pending":
                    raise self._unreachable(self._master) from None
            return self._result(task_ref)
        finally:
            self._forget(task_ref)

    def _result(self, task_ref: str) -> str:
        while True:
            record = self.call("task.get_record", task_ref)
            if record["status"] == "success":
                return str(record["result"])
            if record["status"] not in ("pending", "cancelling"):
                raise Failure(*(record["error_info"] or ["TASK_CANCELLED", task_ref]))
            self._ctx.pool.tasks.check_cancelled(self._ctx.task)
            time.sleep(_LOOK_S)

    def _forget(self, task_ref: str) -> None:
        try:
            self.call("task.destroy", task_ref)
        except Failure:
            return

    # -- disks

    def create(self, disk: Row, sr_ref: str) -> str:
        """Make an empty disk as large as the given one."""
        record = {name: disk[name] for name in _CREATED}
        record |= {"SR": sr_ref, "virtual_size": str(disk["virtual_size"]), "read_only": False, "tags": disk["tags"]}
        return str(self.call("VDI.create", record))

    def resize(self, ref: str, size: int) -> None:
        """Enlarge a disk."""
        self.call("VDI.resize", ref, str(size))

    def send(self, ref: str, disk: Row, base: Row | None) -> None:
        """Send a disk's content, or what it differs from `base` in."""
        repository = self._ctx.pool.repository_of(disk)
        with storage(), repository.export(disk["uuid"], "vhd", base["uuid"] if base is not None else None) as stream:
            self._put("/import_raw_vdi", {"vdi": ref, "format": "vhd"}, self._watched(stream), stream.length)

    def _watched(self, pieces: Iterable[memoryview]) -> Iterator[memoryview]:
        for piece in pieces:
            self._ctx.pool.tasks.check_cancelled(self._ctx.task)
            yield piece

    def snapshot(self, ref: str) -> str:
        """Snapshot a disk."""
        return str(self.call("VDI.snapshot", ref, {}))

    def destroy(self, ref: str) -> None:
        """Remove a disk."""
        self.call("VDI.destroy", ref)

    # -- the VM

    def import_metadata(self, document: bytes, *, restore: bool, dry_run: bool = False) -> str:
        """Make the VM's records; return its reference there."""
        query = {"live": "true", "restore": str(restore).lower(), "dry_run": str(dry_run).lower()}
        result = self._put("/import_metadata", query, [document], len(document))
        return result.partition("<data><value>")[2].partition("</value>")[0]

    def send_memory(self, vm_uuid: str, habits: Mapping[str, Any]) -> None:
        """Let the guest run on over there. Raises CANNOT_CONTACT_HOST, VM_MIGRATE_FAILED's reason as Failure."""
        image = b"XenSavedDomain\n" + json.dumps(dict(habits)).encode()
        query = urlencode({"session_id": self._session, "uuid": vm_uuid, "host": self.host_ref})
        try:
            with closing(self._connect(self._xenops)) as connection:
                connection.request("PUT", f"{MEMORY_PATH}?{query}", image)
                answer = connection.getresponse()
                text = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            raise self._unreachable(self._xenops) from None
        if answer.status != http.HTTPStatus.OK:
            code, _, rest = text.rpartition("</h1>")[2].partition(": [ ")
            raise Failure(code or "INTERNAL_ERROR", *rest.partition(" ]")[0].split("; "))
