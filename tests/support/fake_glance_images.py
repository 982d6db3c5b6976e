"""The images of the fake Glance: records, states, formats. Written from images.md 3 to 5, sharing no code with ours."""

from __future__ import annotations

import json
import re
import struct
import threading
import time
import uuid
from pathlib import Path
from typing import Any

DISK = ["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop"]
CONTAINER = ["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"]
READ_ONLY = {"status", "owner", "size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value", "direct_url"}
READ_ONLY |= {"self", "file", "schema", "created_at", "updated_at", "stores"}
BASE = {"id", "name", "visibility", "protected", "disk_format", "container_format", "min_disk", "min_ram", "tags"}
BASE |= {"os_hidden"}
MAX_PROPERTIES = 128
UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

Record = dict[str, Any]


class Refusal(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Library:
    """All images, in memory and, as files, below `folder`: a Glance that is killed finds them as it left them."""

    def __init__(self, folder: Path, capacity: int | None = None) -> None:
        self.lock = threading.RLock()
        self.folder = folder
        self.capacity = capacity
        self._records: dict[str, Record] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.json"):
            record = json.loads(path.read_text())
            self._records[record["id"]] = record

    def data_path(self, image_id: str) -> Path:
        return self.folder / f"{image_id}.data"

    def everything(self) -> list[Record]:
        """All records, also those of deleted images."""
        with self.lock:
            return [dict(record) for record in self._records.values()]

    def stored_bytes(self) -> int:
        with self.lock:
            return sum(record["size"] or 0 for record in self._records.values() if record["status"] == "active")

    def get(self, image_id: str) -> Record:
        with self.lock:
            record = self._records.get(image_id)
            if record is None or record["status"] == "deleted":
                raise Refusal(404, f"No image found with ID {image_id}")
            return record

    def create(self, wanted: Record) -> Record:
        check_schema(wanted)
        with self.lock:
            image_id = wanted.get("id") or str(uuid.uuid4())
            if image_id in self._records:  # also when it was deleted
                raise Refusal(409, f"Image ID {image_id} already exists!")
            for key in wanted:
                check_may_set(key)
            now = stamp()
            record = {
                "name": None,
                "disk_format": None,
                "container_format": None,
                "visibility": "shared",
                "protected": False,
                "min_ram": 0,
                "min_disk": 0,
                "os_hidden": False,
                "tags": [],
                **wanted,
                "id": image_id,
                "status": "queued",
                "size": None,
                "virtual_size": None,
                "checksum": None,
                "os_hash_algo": None,
                "os_hash_value": None,
                "owner": None,
                "created_at": now,
                "updated_at": now,
            }
            check_quota(record)
            self._records[image_id] = record
            self._save(record)
            return dict(record)

    def patch(self, image_id: str, operations: list[Record]) -> Record:
        with self.lock:
            record = self.get(image_id)
            changed = dict(record)
            for operation in operations:
                key = operation["path"].removeprefix("/").replace("~1", "/").replace("~0", "~")
                check_may_set(key)
                if key in {"disk_format", "container_format"} and record["status"] != "queued":
                    raise Refusal(403, f"Attribute {key} can be only replaced for a queued image.")
                if operation["op"] in {"replace", "remove"} and key not in changed:
                    raise Refusal(409, f"Property {key} does not exist.")
                if operation["op"] == "remove":
                    del changed[key]
                else:
                    changed[key] = operation["value"]
            check_schema({key: value for key, value in changed.items() if key not in READ_ONLY})
            check_quota(changed)
            return dict(self.change(image_id, changed))

    def change(self, image_id: str, fields: Record) -> Record:
        """Set fields of a record and keep them."""
        with self.lock:
            record = self._records[image_id]
            if "id" in fields:
                record.clear()
            record.update(fields, updated_at=stamp())
            self._save(record)
            return record

    def delete(self, image_id: str) -> None:
        with self.lock:
            try:
                record = self.get(image_id)
            except Refusal:
                raise Refusal(404, f"Failed to find image {image_id} to delete") from None
            if record["protected"]:
                raise Refusal(403, f"Image {image_id} is protected and cannot be deleted.")
            self.change(image_id, {"status": "deleted"})
            self.data_path(image_id).unlink(missing_ok=True)

    def begin_upload(self, image_id: str) -> Record:
        with self.lock:
            record = self.get(image_id)
            if record["disk_format"] is None or record["container_format"] is None:
                raise Refusal(400, "Properties disk_format, container_format must be set prior to saving data.")
            if record["status"] != "queued":
                raise Refusal(409, f"Image status transition from {record['status']} to saving is not allowed")
            if record["os_hash_value"] is not None:  # remains of refused data; seen on Glance 33 with its file store
                raise Refusal(500, "The server has either erred or is incapable of performing the requested operation.")
            return dict(self.change(image_id, {"status": "saving"}))

    def break_off_upload(self, image_id: str) -> None:
        """Back to queued, unless it was deleted meanwhile."""
        with self.lock:
            if self._records[image_id]["status"] == "saving":
                self.change(image_id, {"status": "queued"})

    def end_upload(self, image_id: str, result: Record, part: Path | None) -> None:
        with self.lock:
            if self._records[image_id]["status"] == "deleted":
                raise Refusal(
                    410, f"Image {image_id} could not be found after upload. The image may have been deleted."
                )
            if part is not None:
                part.replace(self.data_path(image_id))
            self.change(image_id, {"status": "active", **result})

    def find(self, query: dict[str, str]) -> tuple[list[Record], str | None]:
        """One page of the list, and the marker of the next."""
        query = dict(query)
        limit = int(query.pop("limit", "25"))
        marker = query.pop("marker", None)
        key, _, direction = query.pop("sort", "created_at:desc").partition(":")
        tag = query.pop("tag", None)
        with self.lock:
            found = [dict(record) for record in self._records.values() if record["status"] != "deleted"]
        found = [record for record in found if all(str(record.get(name)) == value for name, value in query.items())]
        found = [record for record in found if tag is None or tag in record["tags"]]
        found.sort(key=lambda record: (str(record.get(key)), record["id"]), reverse=direction != "asc")
        if marker is not None:
            found = found[[record["id"] for record in found].index(marker) + 1 :]
        return found[:limit], found[limit - 1]["id"] if len(found) > limit else None

    def _save(self, record: Record) -> None:
        path = self.folder / f"{record['id']}.json"
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(record))
        draft.replace(path)


def stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def check_may_set(key: str) -> None:
    if key in READ_ONLY:
        raise Refusal(403, f"Attribute '{key}' is read-only.")
    if key.startswith("os_glance_"):
        raise Refusal(403, f"Attribute '{key}' is reserved.")


def check_quota(record: Record) -> None:
    count = len(set(record) - BASE - READ_ONLY)
    if count > MAX_PROPERTIES:
        raise Refusal(413, f"The limit has been exceeded on the number of allowed image properties. Attempted: {count}")


def check_schema(record: Record) -> None:
    for key, value in record.items():
        complaint = None
        if key in {"disk_format", "container_format"}:
            known = DISK if key == "disk_format" else CONTAINER
            complaint = None if value is None or value in known else f"{value!r} is not one of {known}"
        elif key in {"min_disk", "min_ram"}:
            complaint = None if type(value) is int and value >= 0 else f"{value!r} is not of type 'integer'"
        elif key == "id":
            complaint = None if UUID.fullmatch(str(value)) else f"{value!r} does not match the pattern of a UUID"
        elif key == "visibility":
            known = ["community", "public", "private", "shared"]
            complaint = None if value in known else f"{value!r} is not one of {known}"
        elif key not in BASE and not isinstance(value, str):
            complaint = f"{value!r} is not of type 'string'"
        if complaint:
            raise Refusal(400, f"Provided object does not match schema 'image': {complaint}")


def inspect(record: Record, head: bytes, size: int) -> int | None:
    """The size of the disk in the data; refuses data of another format (images.md 5)."""
    formats = (record["disk_format"], record["container_format"])
    if formats[1] != "bare":
        return None
    magic: dict[str, tuple[int, bytes]] = {
        "vhd": (0, b"conectix"),
        "iso": (0x8001, b"CD001"),
        "qcow2": (0, b"QFI\xfb"),
        "vhdx": (0, b"vhdxfile"),
    }
    kind = record["disk_format"]
    if kind == "raw":
        return size or None
    if kind == "ami":
        raise Refusal(415, "Image disk_format ami does not match stream data raw")
    if kind in magic:
        at, sign = magic[kind]
        if head[at : at + len(sign)] != sign or len(head) < 512:
            raise Refusal(415, f"Image disk_format {kind} does not match stream data raw")
    if kind == "vhd":
        (virtual_size,) = struct.unpack_from(">Q", head, 48)
        return int(virtual_size)
    return None
